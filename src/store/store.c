#include "store/store.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BUSY_MS = 2000, NAMES_MAX = 1000 };

struct store {
    sqlite3 *db;
    char path[4096];
};

static int fail(const struct store *s, const char *what, struct error *err)
{
    return error_set(err, E_IO, "cannot %s %s: %s", what, s->path, sqlite3_errmsg(s->db));
}

static int run(struct store *s, const char *sql, struct error *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(s, "prepare", err);
}

/* Whether the file is a database whose pages hang together. */
static bool is_sound(struct store *s)
{
    sqlite3_stmt *q = NULL;
    bool sound = sqlite3_prepare_v2(s->db, "PRAGMA quick_check(1)", -1, &q, NULL) == SQLITE_OK &&
                 sqlite3_step(q) == SQLITE_ROW &&
                 strcmp((const char *)sqlite3_column_text(q, 0), "ok") == 0;
    sqlite3_finalize(q);
    return sound;
}

static int open_file(struct store *s, struct error *err)
{
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX;
    if (sqlite3_open_v2(s->path, &s->db, flags, NULL) != SQLITE_OK)
        return fail(s, "open", err);
    sqlite3_busy_timeout(s->db, BUSY_MS);
    return 0;
}

/* Gives a damaged file, and the journal that belongs to it, a name that is free. */
static int put_aside(struct store *s, char ret_name[4096], struct error *err)
{
    char journal[4096 + 8];
    sqlite3_close(s->db);
    s->db = NULL;
    for (int i = 1; i <= NAMES_MAX; i++) {
        int n = snprintf(ret_name, 4096, "%s.damaged-%d", s->path, i);
        if (n < 0 || n >= 4096)
            break;
        if (access(ret_name, F_OK) == 0)
            continue;
        if (rename(s->path, ret_name) != 0)
            break;
        snprintf(journal, sizeof(journal), "%s-journal", s->path);
        remove(journal);
        return 0;
    }
    return error_set(err, E_IO, "%s is damaged and cannot be renamed: move it away", s->path);
}

int store_open(const char *path, struct store **ret_store, char ret_damaged[4096],
               struct error *err)
{
    char aside[4096] = "";
    struct store *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "out of memory for the state's file");
    if (strlen(path) >= sizeof(s->path)) {
        free(s);
        return error_set(err, E_INVALID, "the path of the state's file is too long");
    }
    memcpy(s->path, path, strlen(path) + 1);
    int rc = open_file(s, err);
    if (rc == 0 && !is_sound(s)) {
        rc = put_aside(s, aside, err);
        if (rc == 0)
            rc = open_file(s, err);
    }
    /* A rollback journal and full synchronization: values are few, and each must outlive a power
     * cut once it is written. */
    if (rc == 0)
        rc = run(s, "PRAGMA journal_mode=DELETE", err);
    if (rc == 0)
        rc = run(s, "PRAGMA synchronous=FULL", err);
    if (rc == 0)
        rc = run(s, "CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL)",
                 err);
    if (rc != 0) {
        store_close(s);
        return rc;
    }
    if (ret_damaged != NULL)
        memcpy(ret_damaged, aside, sizeof(aside));
    *ret_store = s;
    return 0;
}

void store_close(struct store *s)
{
    if (s == NULL)
        return;
    sqlite3_close(s->db);
    free(s);
}

int store_read(struct store *s, const char *key, struct buf *ret_value, struct error *err)
{
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(s->db, "SELECT value FROM state WHERE key = ?", -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(q, 1, key, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    if (rc == SQLITE_ROW) {
        int n = sqlite3_column_bytes(q, 0);
        const void *value = sqlite3_column_blob(q, 0);
        rc = n > 0 ? buf_append(ret_value, value, (size_t)n) : 0;
        if (rc != 0)
            error_set(err, rc, "%s: '%s' does not fit into memory", s->path, key);
    } else if (rc == SQLITE_DONE) {
        rc = error_set(err, E_NOTFOUND, "%s has no '%s'", s->path, key);
    } else {
        rc = fail(s, "read", err);
    }
    sqlite3_finalize(q);
    return rc;
}

int store_write(struct store *s, const char *key, const void *value, size_t n, struct error *err)
{
    sqlite3_stmt *q = NULL;
    if (n > STORE_VALUE_BYTES_MAX)
        return error_set(err, E_LIMIT, "'%s' has %zu bytes; at most %d can be kept", key, n,
                         STORE_VALUE_BYTES_MAX);
    int rc = sqlite3_prepare_v2(s->db, "INSERT OR REPLACE INTO state (key, value) VALUES (?, ?)",
                                -1, &q, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(q, 1, key, -1, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_blob64(q, 2, n > 0 ? value : "", n, SQLITE_STATIC);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(q);
    rc = rc == SQLITE_DONE ? 0 : fail(s, "write to", err);
    sqlite3_finalize(q);
    return rc;
}
