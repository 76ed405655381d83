#include "api/keys.h"

#include "api/request_fields.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char hash_prefix[] = "sha256:";
enum { HASH_PREFIX_BYTES = sizeof(hash_prefix) - 1, N_WORDS_MAX = 5 };

/* ---- one line ---- */

struct line {
    size_t number;
    struct error *err;
    const char *words[N_WORDS_MAX];
    size_t lens[N_WORDS_MAX];
    size_t n_words;
};

static int refuse(const struct line *l, const char *why)
{
    return error_set(l->err, E_FORMAT, "line %zu of the API keys: %s", l->number, why);
}

/* Into words; a comment has none. */
static int split(struct line *l, const char *text, size_t len)
{
    l->n_words = 0;
    for (size_t i = 0; i < len;) {
        if (text[i] == ' ' || text[i] == '\t' || text[i] == '\r') {
            i++;
            continue;
        }
        if (text[i] == '#' && l->n_words == 0)
            return 0;
        if (l->n_words == N_WORDS_MAX)
            return refuse(l, "more than key, name, scopes and two limits");
        size_t begin = i;
        while (i < len && text[i] != ' ' && text[i] != '\t' && text[i] != '\r')
            i++;
        l->words[l->n_words] = text + begin;
        l->lens[l->n_words++] = i - begin;
    }
    return 0;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static void hash_key(const char *text, size_t len, uint8_t ret[API_KEY_HASH_BYTES])
{
    SHA256((const unsigned char *)text, len, ret);
}

static int read_key(const struct line *l, struct api_key *key)
{
    const char *text = l->words[0];
    size_t len = l->lens[0];
    if (len >= HASH_PREFIX_BYTES && memcmp(text, hash_prefix, HASH_PREFIX_BYTES) == 0) {
        if (len != HASH_PREFIX_BYTES + 2 * API_KEY_HASH_BYTES)
            return refuse(l, "'sha256:' needs 64 hexadecimal digits behind it");
        for (size_t i = 0; i < API_KEY_HASH_BYTES; i++) {
            int high = digit_of(text[HASH_PREFIX_BYTES + 2 * i]);
            int low = digit_of(text[HASH_PREFIX_BYTES + 2 * i + 1]);
            if (high < 0 || low < 0)
                return refuse(l, "'sha256:' needs 64 hexadecimal digits behind it");
            key->hash[i] = (uint8_t)(16 * high + low);
        }
        return 0;
    }
    if (len < API_KEY_LENGTH_MIN || len > API_KEY_LENGTH_MAX)
        return refuse(l, "a key has 16 to 256 characters");
    for (size_t i = 0; i < len; i++)
        if (text[i] <= ' ' || text[i] >= 0x7f)
            return refuse(l, "a key has printable ASCII characters only");
    hash_key(text, len, key->hash);
    return 0;
}

static int read_name(const struct line *l, struct api_key *key)
{
    char name[API_KEY_NAME_BYTES];
    if (l->lens[1] >= sizeof(name))
        return refuse(l, "a name has at most 64 characters");
    memcpy(name, l->words[1], l->lens[1]);
    name[l->lens[1]] = '\0';
    if (!field_is_plain_name(name, l->lens[1], sizeof(name) - 1))
        return refuse(l, "a name has letters, digits, '_', '-' and '.' only");
    memcpy(key->name, name, sizeof(name));
    return 0;
}

static int read_scopes(const struct line *l, struct api_key *key)
{
    static const struct {
        const char *name;
        unsigned scope;
    } known[] = {
        {"inference", API_SCOPE_INFERENCE}, {"read", API_SCOPE_READ}, {"admin", API_SCOPE_ADMIN}};
    const char *text = l->words[2], *end = text + l->lens[2];
    while (text <= end) {
        const char *comma = memchr(text, ',', (size_t)(end - text));
        size_t len = (size_t)((comma != NULL ? comma : end) - text);
        unsigned scope = 0;
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
            if (strlen(known[i].name) == len && memcmp(known[i].name, text, len) == 0)
                scope = known[i].scope;
        if (scope == 0)
            return refuse(l, "scopes are 'inference', 'read' and 'admin', separated by commas");
        key->scopes |= scope;
        if (comma == NULL)
            break;
        text = comma + 1;
    }
    return 0;
}

static int read_limit(const struct line *l, size_t index, struct api_bucket *ret)
{
    uint64_t n = 0;
    if (index >= l->n_words || (l->lens[index] == 1 && l->words[index][0] == '-'))
        return 0;
    for (size_t i = 0; i < l->lens[index]; i++) {
        char c = l->words[index][i];
        if (c < '0' || c > '9' || (n = 10 * n + (uint64_t)(c - '0')) > UINT32_MAX)
            return refuse(l, "limits are whole numbers below 2^32, or '-'");
    }
    ret->n_per_min = (uint32_t)n;
    ret->level = (double)n;
    return 0;
}

static int read_line(struct line *l, struct api_keys *keys)
{
    struct api_key key = {0};
    if (l->n_words < 3)
        return refuse(l, "needs key, name and scopes");
    int rc = read_key(l, &key);
    if (rc == 0)
        rc = read_name(l, &key);
    if (rc == 0)
        rc = read_scopes(l, &key);
    if (rc == 0)
        rc = read_limit(l, 3, &key.requests);
    if (rc == 0)
        rc = read_limit(l, 4, &key.tokens);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < keys->n; i++) {
        if (strcmp(keys->list[i].name, key.name) == 0)
            return refuse(l, "another key has this name");
        if (memcmp(keys->list[i].hash, key.hash, sizeof(key.hash)) == 0)
            return refuse(l, "the same key is there twice");
    }
    if (keys->n >= API_KEYS_MAX)
        return error_set(l->err, E_LIMIT, "more than %d API keys", API_KEYS_MAX);
    keys->list[keys->n++] = key;
    return 0;
}

/* ---- the file ---- */

int api_keys_parse(const char *text, size_t len, struct api_keys **ret_keys, struct error *err)
{
    struct line l = {.err = err};
    size_t n_lines = 1;
    int rc = 0;
    for (size_t i = 0; i < len; i++)
        n_lines += text[i] == '\n';
    struct api_keys *keys = calloc(1, sizeof(*keys));
    if (keys != NULL)
        keys->list = calloc(n_lines < API_KEYS_MAX ? n_lines : API_KEYS_MAX, sizeof(*keys->list));
    if (keys == NULL || keys->list == NULL) {
        api_keys_free(keys);
        return error_set(err, E_NOMEM, "out of memory for API keys");
    }
    for (size_t at = 0; rc == 0 && at < len;) {
        const char *newline = memchr(text + at, '\n', len - at);
        size_t n = newline != NULL ? (size_t)(newline - text) - at : len - at;
        l.number++;
        if (memchr(text + at, '\0', n) != NULL)
            rc = refuse(&l, "it has a NUL byte");
        else if ((rc = split(&l, text + at, n)) == 0 && l.n_words > 0)
            rc = read_line(&l, keys);
        at += n + 1;
    }
    if (rc == 0 && keys->n == 0)
        rc = error_set(err, E_FORMAT, "there is no API key in the file: nobody could do anything");
    if (rc != 0) {
        api_keys_free(keys);
        return rc;
    }
    *ret_keys = keys;
    return 0;
}

static int check_file(int fd, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return error_set(err, E_IO, "cannot look at %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, E_IO, "%s is not a file", path);
    if ((st.st_mode & 077) != 0)
        return error_set(err, E_IO,
                         "%s, the API keys, can be read or changed by others (mode %03o). Say: "
                         "chmod 600 %s",
                         path, st.st_mode & 0777u, path);
    if (st.st_size > API_KEYS_FILE_BYTES_MAX)
        return error_set(err, E_LIMIT, "%s has %lld bytes, too many for API keys", path,
                         (long long)st.st_size);
    return 0;
}

int api_keys_load(const char *path, struct api_keys **ret_keys, struct error *err)
{
    char *text = NULL;
    size_t len = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return error_set(err, E_IO, "cannot read the API keys in %s: %s", path, strerror(errno));
    int rc = check_file(fd, path, err);
    if (rc == 0 && (text = malloc(API_KEYS_FILE_BYTES_MAX)) == NULL)
        rc = error_set(err, E_NOMEM, "out of memory for API keys");
    while (rc == 0) {
        ssize_t n = read(fd, text + len, API_KEYS_FILE_BYTES_MAX - len);
        if (n > 0)
            len += (size_t)n;
        else if (n == 0)
            break;
        else if (errno != EINTR)
            rc = error_set(err, E_IO, "cannot read the API keys in %s: %s", path, strerror(errno));
    }
    close(fd);
    if (rc == 0 && (rc = api_keys_parse(text, len, ret_keys, err)) != 0)
        error_wrap(err, rc, "%s", path);
    if (text != NULL) /* it may have keys */
        OPENSSL_cleanse(text, len);
    free(text);
    return rc;
}

void api_keys_free(struct api_keys *keys)
{
    if (keys == NULL)
        return;
    free(keys->list);
    free(keys);
}

/* ---- use ---- */

struct api_key *api_keys_find(const struct api_keys *keys, const char *text, size_t len)
{
    uint8_t hash[API_KEY_HASH_BYTES];
    size_t found = SIZE_MAX;
    if (len > API_KEY_LENGTH_MAX)
        return NULL;
    hash_key(text, len, hash);
    for (size_t i = 0; i < keys->n; i++)
        if (CRYPTO_memcmp(keys->list[i].hash, hash, sizeof(hash)) == 0)
            found = i;
    return found != SIZE_MAX ? &keys->list[found] : NULL;
}

bool api_key_may(const struct api_key *key, unsigned scopes)
{
    return (key->scopes & (scopes | API_SCOPE_ADMIN)) != 0;
}

static void fill(struct api_bucket *b, uint64_t now_ns)
{
    if (b->filled_ns != 0 && now_ns > b->filled_ns) {
        b->level += (double)(now_ns - b->filled_ns) * b->n_per_min / 60e9;
        if (b->level > b->n_per_min)
            b->level = b->n_per_min;
    }
    b->filled_ns = now_ns;
}

/* Seconds until the level is there. */
static uint32_t wait_for(const struct api_bucket *b, double level)
{
    if (b->n_per_min == 0 || b->level + 1e-9 >= level) /* filling rounds */
        return 0;
    double wait_s = ceil((level - b->level) * 60 / b->n_per_min);
    return wait_s < 1 ? 1 : wait_s > 86400 ? 86400 : (uint32_t)wait_s;
}

uint32_t api_key_take_request(struct api_key *key, bool is_inference, uint64_t now_ns)
{
    fill(&key->requests, now_ns);
    fill(&key->tokens, now_ns);
    uint32_t wait_s = wait_for(&key->requests, 1);
    uint32_t tokens_s = is_inference ? wait_for(&key->tokens, 1) : 0;
    if (wait_s == 0 && tokens_s == 0)
        key->requests.level -= key->requests.n_per_min > 0;
    return wait_s > tokens_s ? wait_s : tokens_s;
}

void api_key_charge_tokens(struct api_key *key, uint64_t n, uint64_t now_ns)
{
    fill(&key->tokens, now_ns);
    if (key->tokens.n_per_min > 0)
        key->tokens.level -= (double)n;
}

void api_key_hash_text(const char *key, size_t len, char ret_text[72])
{
    uint8_t hash[API_KEY_HASH_BYTES];
    hash_key(key, len, hash);
    memcpy(ret_text, hash_prefix, HASH_PREFIX_BYTES);
    for (size_t i = 0; i < sizeof(hash); i++)
        snprintf(ret_text + HASH_PREFIX_BYTES + 2 * i, 3, "%02x", hash[i]);
}
