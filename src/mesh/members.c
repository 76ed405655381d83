/* Who belongs to the cluster: the table of keys, its file, what members tell each other of it. */
#include "base/clock.h"
#include "base/log.h"
#include "mesh/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TRUST_FILE_BYTES_MAX = 1 << 20 };

static const char *today(char text[TEXT_DATE_BYTES])
{
    time_t now_s = (time_t)(clock_wall_ns() / 1000000000);
    struct tm t;
    if (gmtime_r(&now_s, &t) == NULL || strftime(text, TEXT_DATE_BYTES, "%Y-%m-%d", &t) != 10)
        snprintf(text, TEXT_DATE_BYTES, "1970-01-01");
    return text;
}

/* ---- the file ---- */

static int read_whole(const char *path, struct buf *b, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd < 0)
        return error_set(err, E_IO, "cannot open %s: %s", path, strerror(errno));
    ssize_t n = 1;
    while (n > 0 && b->error == 0 && buf_reserve(b, 4096) == 0) {
        n = read(fd, b->data + b->len, 4096);
        b->len += n > 0 ? (size_t)n : 0;
    }
    int rc = 0;
    if (b->error != 0)
        rc = error_set(err, b->error, "%s is larger than %d bytes, too much for a list of keys",
                       path, TRUST_FILE_BYTES_MAX);
    else if (n < 0)
        rc = error_set(err, E_IO, "cannot read %s: %s", path, strerror(errno));
    close(fd);
    return rc;
}

int members_load(struct mesh *m, struct error *err)
{
    struct buf b;
    int n = snprintf(m->save_path, sizeof(m->save_path), "%s/trusted", m->data_dir);
    if (n < 0 || (size_t)n >= sizeof(m->save_path))
        return error_set(err, E_INVALID, "data folder's path is too long");
    buf_init(&b, TRUST_FILE_BYTES_MAX);
    int rc = read_whole(m->save_path, &b, err);
    if (rc == 0)
        rc = trust_parse(&m->trust, b.data, b.len, m->save_path, err);
    buf_done(&b);
    for (uint32_t i = 0; rc == 0 && i < m->trust.n; i++) {
        const struct trust_entry *e = &m->trust.entry[i];
        struct dial *d = e->address.port != 0 && !e->is_revoked ? dial_add(m, &e->address) : NULL;
        if (d != NULL) {
            d->has_id = d->is_known = true;
            d->id = e->id;
        }
    }
    return rc;
}

static void write_file(struct mesh *m)
{
    error_clear(&m->save_error);
    file_write_atomically(m->save_path, m->save_text.data, m->save_text.len, false, &m->save_error);
}

static void on_work(uv_work_t *work)
{
    write_file(work->data);
}

static void note_outcome(struct mesh *m)
{
    buf_done(&m->save_text);
    if (m->save_error.code == 0) {
        m->has_save_failed = false;
        return;
    }
    m->is_trust_dirty = true; /* the next tick tries again */
    if (!m->has_save_failed)
        log_error("mesh", "%s -> who is trusted would not outlive this process; will try again",
                  m->save_error.message);
    m->has_save_failed = true;
}

static void on_work_done(uv_work_t *work, int status)
{
    struct mesh *m = work->data;
    if (status != 0)
        error_set(&m->save_error, status, "cannot write %s: %s", m->save_path, uv_strerror(status));
    m->is_saving = false;
    note_outcome(m);
    if (m->is_closing)
        members_save(m, true);
    mesh_handle_closed(m);
}

void members_save(struct mesh *m, bool is_last)
{
    if (!m->is_trust_dirty || m->is_saving)
        return;
    m->is_trust_dirty = false;
    buf_init(&m->save_text, TRUST_FILE_BYTES_MAX);
    int rc = trust_format(&m->trust, &m->save_text);
    if (rc != 0) {
        error_set(&m->save_error, rc, "cannot write %s: %s", m->save_path, error_text(rc));
        note_outcome(m);
        return;
    }
    m->save.data = m;
    if (!is_last && uv_queue_work(m->loop, &m->save, on_work, on_work_done) == 0) {
        m->is_saving = true;
        m->n_handles++;
        return;
    }
    write_file(m);
    note_outcome(m);
}

/* ---- the table ---- */

bool members_trust_key(struct mesh *m, const struct node_id *id)
{
    const struct trust_entry *e = trust_find(&m->trust, id);
    return e != NULL && !e->is_revoked;
}

bool members_is_revoked(struct mesh *m, const struct node_id *id)
{
    const struct trust_entry *e = trust_find(&m->trust, id);
    return e != NULL && e->is_revoked;
}

bool mesh_is_trusted(const struct mesh *m, const struct node_id *id)
{
    return members_trust_key((struct mesh *)m, id);
}

bool mesh_is_newcomer(const struct mesh *m)
{
    return m->options.secret == NULL && m->trust.n_trusted == 0;
}

int members_add(struct mesh *m, const uint8_t key[32], const char *name, bool is_temporary)
{
    char date[TEXT_DATE_BYTES], text[33];
    struct node_id id;
    int rc = trust_add(&m->trust, key, name, today(date), is_temporary);
    if (rc != 1)
        return rc;
    identity_id_of_key(key, &id);
    if (!is_temporary)
        log_info("mesh", "node=%s name=%s is trusted from now on", node_id_text(&id, text), name);
    m->is_trust_dirty = m->is_trust_dirty || !is_temporary;
    return 1;
}

/* A hash of the least key of all members: nothing that a stranger could use, and nothing that it
 * could not claim, either. */
void members_get_tag(struct mesh *m, uint8_t ret_tag[8])
{
    const uint8_t *least = m->options.identity->key;
    uint8_t text[48] = "shoal cluster", digest[32];
    for (uint32_t i = 0; i < m->trust.n; i++)
        if (!m->trust.entry[i].is_revoked && memcmp(m->trust.entry[i].key, least, 32) < 0)
            least = m->trust.entry[i].key;
    memcpy(text + 16, least, 32);
    SHA256(text, sizeof(text), digest);
    memcpy(ret_tag, digest, 8);
}

/* ---- what members tell each other ---- */

static void fill_entry(struct mesh_trust_entry *ret, const struct trust_entry *e)
{
    memset(ret, 0, sizeof(*ret));
    ret->is_revoked = e->is_revoked;
    ret->is_temporary = e->is_temporary;
    memcpy(ret->key, e->key, sizeof(ret->key));
    ret->id = e->id;
    memcpy(ret->name, e->name, sizeof(ret->name));
    ret->address = e->address;
}

static void send_entries(struct mesh_link *l, struct mesh_trust_entry *entries, uint32_t n)
{
    struct mesh_trust t = {.n_entries = n, .entries = entries};
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_trust(&b, &t);
    mesh_link_send(l, &b);
}

static void send_all(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct mesh_trust_entry *entries = calloc(m->trust.n + 1, sizeof(*entries));
    if (entries == NULL) {
        mesh_link_close(l, "out of memory");
        return;
    }
    for (uint32_t i = 0; i < m->trust.n; i++)
        fill_entry(&entries[i], &m->trust.entry[i]);
    send_entries(l, entries, m->trust.n);
    free(entries);
}

/* To all members but the one that said it and the one that it is about. */
static void tell_others(struct mesh *m, const struct trust_entry *e, const struct mesh_link *source)
{
    struct mesh_trust_entry entry;
    fill_entry(&entry, e);
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->phase == LINK_UP && l != source && !node_id_equal(&l->hello.id, &e->id))
            send_entries(l, &entry, 1);
}

/* What goes into the file must come out of it again, and mean something to whoever dials it. */
static bool is_lasting_address(const struct mesh_address *a)
{
    char text[TEXT_ADDRESS_BYTES];
    struct mesh_address parsed;
    address_text(a, text);
    return address_parse(text, strlen(text), &parsed) == 0 && strncmp(a->host, "fe80:", 5) != 0;
}

void members_link_up(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct trust_entry *e = trust_find(&m->trust, &l->hello.id);
    if (e == NULL || e->is_revoked)
        return;
    struct mesh_address a = l->hello.mesh;
    if (!is_lasting_address(&a))
        a = e->address;
    if (strcmp(e->name, l->hello.name) != 0 || e->address.port != a.port ||
        strcmp(e->address.host, a.host) != 0) {
        memcpy(e->name, l->hello.name, sizeof(e->name));
        e->address = a;
        m->is_trust_dirty = m->is_trust_dirty || !e->is_temporary;
        tell_others(m, e, l);
    }
    send_all(l);
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

static void close_links_of(struct mesh *m, const struct node_id *id, const char *reason,
                           bool is_pairing_only)
{
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->has_key && node_id_equal(&l->hello.id, id) &&
            (!is_pairing_only || l->phase == LINK_ASKING))
            mesh_link_close(l, reason);
}

static int apply_revocation(struct mesh *m, const struct node_id *id,
                            const struct mesh_link *source)
{
    char date[TEXT_DATE_BYTES], text[33];
    int rc = trust_revoke(&m->trust, id, today(date));
    if (rc <= 0)
        return rc;
    m->is_trust_dirty = true;
    log_warn("mesh", "node=%s is revoked%s%s", node_id_text(id, text),
             source != NULL ? ", says " : "", source != NULL ? source->hello.name : "");
    close_links_of(m, id, "this node's key is revoked", false);
    tell_others(m, trust_find(&m->trust, id), source);
    return 0;
}

int mesh_revoke(struct mesh *m, const struct node_id *id, struct error *err)
{
    if (node_id_equal(id, &m->options.identity->id))
        return error_set(err, E_INVALID, "a node cannot revoke itself: say so on another one");
    int rc = apply_revocation(m, id, NULL);
    return rc == 0 ? 0
                   : error_set(err, rc, "cannot revoke another key: %d is the limit", TRUST_MAX);
}

static int take_entry(struct mesh_link *l, const struct mesh_trust_entry *e, struct error *err)
{
    struct mesh *m = l->mesh;
    struct node_id id;
    if (node_id_equal(&e->id, &m->options.identity->id)) {
        if (e->is_revoked)
            log_warn("mesh", "peer=%s says that this node is revoked", l->hello.name);
        return 0;
    }
    if (e->is_revoked) {
        int rc = apply_revocation(m, &e->id, l);
        return rc == 0 ? 0 : error_set(err, rc, "cannot keep another revoked key");
    }
    identity_id_of_key(e->key, &id);
    if (!node_id_equal(&id, &e->id))
        return error_set(err, E_PROTOCOL, "TRUST message: the id of %s is not that of its key",
                         e->name);
    int rc = members_add(m, e->key, e->name, e->is_temporary);
    if (rc == E_UNAVAILABLE)
        return 0; /* revoked here, and this node has said so */
    if (rc < 0) {
        log_warn("mesh", "peer=%s trusts %s, but this node knows too many keys", l->hello.name,
                 e->name);
        return 0;
    }
    /* An address on loopback means something else on another machine. */
    bool is_reachable = is_lasting_address(&e->address) &&
                        (!is_loopback(e->address.host) || is_loopback(l->remote_host));
    struct trust_entry *known = trust_find(&m->trust, &id);
    if (is_reachable && known->address.port == 0) {
        known->address = e->address;
        m->is_trust_dirty = m->is_trust_dirty || !known->is_temporary;
    }
    if (is_reachable)
        dial_learn(m, &id, &e->address, true);
    if (rc == 1) {
        close_links_of(m, &id, "is a member now", true);
        dial_hurry(m, &id);
        tell_others(m, known, l);
    }
    return 0;
}

int members_take_trust(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh_trust t;
    int rc = mesh_decode_trust(m, &t, err);
    if (rc != 0)
        return rc;
    for (uint32_t i = 0; rc == 0 && i < t.n_entries && l->phase == LINK_UP; i++)
        rc = take_entry(l, &t.entries[i], err);
    mesh_trust_done(&t);
    return rc;
}
