#include "mesh/text.h"

#include "base/utf8.h"
#include "mesh/identity.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

static const char digits[] = "0123456789abcdef";

bool hex_parse(const char *text, size_t len, void *ret_bytes, size_t n)
{
    uint8_t *bytes = ret_bytes;
    if (len < 2 * n)
        return false;
    for (size_t i = 0; i < 2 * n; i++) {
        const char *d = text[i] != '\0' ? strchr(digits, text[i]) : NULL;
        if (d == NULL)
            return false;
        bytes[i / 2] = (uint8_t)(i % 2 == 0 ? (d - digits) << 4 : bytes[i / 2] | (d - digits));
    }
    return true;
}

void hex_format(const void *bytes, size_t n, char *ret_text)
{
    for (size_t i = 0; i < n; i++) {
        uint8_t v = ((const uint8_t *)bytes)[i];
        ret_text[2 * i] = digits[v >> 4];
        ret_text[2 * i + 1] = digits[v & 15];
    }
    ret_text[2 * n] = '\0';
}

/* ---- addresses ---- */

static bool parse_port(const char *text, size_t len, uint16_t *ret)
{
    uint32_t v = 0;
    if (len == 0 || len > 5 || text[0] == '0')
        return false;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        v = v * 10 + (uint32_t)(text[i] - '0');
    }
    *ret = (uint16_t)v;
    return v <= UINT16_MAX;
}

int address_parse(const char *text, size_t len, struct mesh_address *ret)
{
    struct mesh_address a = {0};
    uint8_t binary[16];
    const char *colon = memrchr(text, ':', len);
    size_t host_len = colon != NULL ? (size_t)(colon - text) : 0;
    if (host_len == 0 || !parse_port(colon + 1, len - host_len - 1, &a.port))
        return E_INVALID;
    bool is_v6 = text[0] == '[' && text[host_len - 1] == ']' && host_len > 2;
    if (is_v6) {
        text++;
        host_len -= 2;
    }
    if (host_len >= sizeof(a.host))
        return E_INVALID;
    memcpy(a.host, text, host_len);
    if (inet_pton(is_v6 ? AF_INET6 : AF_INET, a.host, binary) != 1)
        return E_INVALID;
    *ret = a;
    return 0;
}

const char *address_text(const struct mesh_address *a, char text[TEXT_ADDRESS_BYTES])
{
    bool is_v6 = strchr(a->host, ':') != NULL;
    snprintf(text, TEXT_ADDRESS_BYTES, is_v6 ? "[%s]:%u" : "%s:%u", a->host, a->port);
    return text;
}

/* ---- the file of trusted keys ---- */

struct line { /* the words of one line, taken from the front */
    const char *text;
    size_t len;
};

static struct line next_word(struct line *l)
{
    struct line word = {l->text, 0};
    while (word.len < l->len && l->text[word.len] != ' ')
        word.len++;
    size_t used = word.len + (word.len < l->len);
    l->text += used;
    l->len -= used;
    return word;
}

static bool word_is(struct line word, const char *text)
{
    return word.len == strlen(text) && memcmp(word.text, text, word.len) == 0;
}

static bool parse_date(struct line word, char ret_date[TEXT_DATE_BYTES])
{
    static const char form[] = "dddd-dd-dd";
    if (word.len != sizeof(form) - 1)
        return false;
    for (size_t i = 0; i < word.len; i++)
        if (form[i] == '-' ? word.text[i] != '-' : word.text[i] < '0' || word.text[i] > '9')
            return false;
    memcpy(ret_date, word.text, word.len);
    ret_date[word.len] = '\0';
    return true;
}

/* The rest of the line; may be empty and hold spaces, but nothing that troubles a terminal. */
static bool parse_name(struct line rest, char ret_name[64])
{
    if (rest.len >= 64)
        return false;
    for (size_t i = 0, n; i < rest.len; i += n) {
        n = utf8_sequence_length(rest.text + i, rest.len - i);
        uint32_t c = n > 0 ? utf8_decode(rest.text + i, n) : 0;
        if (c < ' ' || (c >= 0x7f && c < 0xa0))
            return false;
    }
    memcpy(ret_name, rest.text, rest.len);
    ret_name[rest.len] = '\0';
    return true;
}

static int parse_line(struct trust *t, struct line l, const char *at, struct error *err)
{
    struct trust_entry e = {0};
    struct line kind = next_word(&l), key = next_word(&l), date = next_word(&l);
    e.is_revoked = word_is(kind, "revoked");
    if (!e.is_revoked && !word_is(kind, "trusted"))
        return error_set(err, E_FORMAT, "%s: a line begins with trusted, revoked or #", at);
    if (e.is_revoked ? key.len != 32 || !hex_parse(key.text, key.len, e.id.bytes, 16)
                     : key.len != 64 || !hex_parse(key.text, key.len, e.key, 32))
        return error_set(err, E_FORMAT, "%s: after %s %s is due", at,
                         e.is_revoked ? "revoked" : "trusted",
                         e.is_revoked ? "a node id, 32 hexadecimal digits"
                                      : "a public key, 64 hexadecimal digits");
    if (!parse_date(date, e.date))
        return error_set(err, E_FORMAT, "%s: the third word is not a date such as 2026-01-31", at);
    if (!e.is_revoked) {
        struct line address = next_word(&l);
        if (!word_is(address, "-") && address_parse(address.text, address.len, &e.address) != 0)
            return error_set(err, E_FORMAT,
                             "%s: the fourth word is neither an address such as 192.0.2.1:8421 "
                             "nor -",
                             at);
        identity_id_of_key(e.key, &e.id);
    }
    if (!parse_name(l, e.name))
        return error_set(err, E_FORMAT,
                         "%s: the name has over 63 bytes, control characters or is not UTF-8", at);
    if (trust_find(t, &e.id) != NULL)
        return error_set(err, E_FORMAT, "%s: this node has a line already", at);
    if (t->n == TRUST_MAX || (!e.is_revoked && t->n_trusted == TRUST_TRUSTED_MAX))
        return error_set(err, E_LIMIT, "%s: too many keys; at most %d trusted ones and %d lines",
                         at, TRUST_TRUSTED_MAX, TRUST_MAX);
    t->entry[t->n++] = e;
    t->n_trusted += !e.is_revoked;
    return 0;
}

int trust_parse(struct trust *t, const char *text, size_t len, const char *path, struct error *err)
{
    char at[300];
    size_t start = 0;
    for (uint32_t number = 1; start < len; number++) {
        const char *end = memchr(text + start, '\n', len - start);
        struct line l = {text + start, end != NULL ? (size_t)(end - text) - start : len - start};
        start += l.len + 1;
        if (l.len == 0 || l.text[0] == '#')
            continue;
        snprintf(at, sizeof(at), "%s:%u", path, number);
        int rc = parse_line(t, l, at, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int trust_format(const struct trust *t, struct buf *b)
{
    char key[65], address[TEXT_ADDRESS_BYTES];
    buf_append_str(b, "# Keys of the nodes that are, or were, members of this node's cluster.\n"
                      "# trusted PUBLIC-KEY DATE LAST-ADDRESS NAME\n"
                      "# revoked NODE-ID DATE NAME\n"
                      "# shoal rewrites this file; change it only while the node is stopped.\n");
    for (uint32_t i = 0; i < t->n; i++) {
        const struct trust_entry *e = &t->entry[i];
        if (e->is_temporary)
            continue;
        if (e->is_revoked) {
            hex_format(e->id.bytes, 16, key);
            buf_printf(b, "revoked %s %s %s\n", key, e->date, e->name);
        } else {
            hex_format(e->key, 32, key);
            buf_printf(b, "trusted %s %s %s %s\n", key, e->date,
                       e->address.port != 0 ? address_text(&e->address, address) : "-", e->name);
        }
    }
    return b->error;
}

struct trust_entry *trust_find(struct trust *t, const struct node_id *id)
{
    for (uint32_t i = 0; i < t->n; i++)
        if (node_id_equal(&t->entry[i].id, id))
            return &t->entry[i];
    return NULL;
}

int trust_add(struct trust *t, const uint8_t key[32], const char *name, const char *date,
              bool is_temporary)
{
    struct node_id id;
    identity_id_of_key(key, &id);
    struct trust_entry *e = trust_find(t, &id);
    if (e != NULL && e->is_revoked)
        return E_UNAVAILABLE;
    if (e != NULL) {
        bool is_change = e->is_temporary && !is_temporary;
        e->is_temporary = e->is_temporary && is_temporary;
        return is_change;
    }
    if (t->n == TRUST_MAX || t->n_trusted == TRUST_TRUSTED_MAX)
        return E_LIMIT;
    e = &t->entry[t->n++];
    *e = (struct trust_entry){.is_temporary = is_temporary, .id = id};
    memcpy(e->key, key, sizeof(e->key));
    snprintf(e->name, sizeof(e->name), "%s", name);
    snprintf(e->date, sizeof(e->date), "%s", date);
    t->n_trusted++;
    return 1;
}

int trust_revoke(struct trust *t, const struct node_id *id, const char *date)
{
    struct trust_entry *e = trust_find(t, id);
    if (e != NULL && e->is_revoked)
        return 0;
    if (e == NULL && t->n == TRUST_MAX)
        return E_LIMIT;
    t->n_trusted -= e != NULL;
    if (e == NULL) {
        e = &t->entry[t->n++];
        e->name[0] = '\0';
    }
    e->is_revoked = true;
    e->is_temporary = false;
    e->id = *id;
    memset(e->key, 0, sizeof(e->key));
    e->address = (struct mesh_address){0};
    snprintf(e->date, sizeof(e->date), "%s", date);
    return 1;
}

/* ---- invites ---- */

static const char scheme[] = "shoal://";

static int parse_addresses(const char *text, size_t len, struct invite_line *ret)
{
    while (ret->n_addresses < INVITE_ADDRESSES_MAX) {
        const char *comma = memchr(text, ',', len);
        size_t n = comma != NULL ? (size_t)(comma - text) : len;
        int rc = address_parse(text, n, &ret->address[ret->n_addresses++]);
        if (rc != 0 || comma == NULL)
            return rc;
        text += n + 1;
        len -= n + 1;
    }
    return E_INVALID;
}

int invite_line_parse(const char *text, struct invite_line *ret, struct error *err)
{
    static const char blanks[] = " \t\r\n";
    struct invite_line i = {0};
    text += strspn(text, blanks);
    size_t len = strcspn(text, blanks);
    if (text[len + strspn(text + len, blanks)] != '\0' || len < sizeof(scheme) ||
        strncmp(text, scheme, sizeof(scheme) - 1) != 0)
        return error_set(err, E_INVALID,
                         "not an invite: it is one line that begins with %s, as `shoal invite` "
                         "prints it",
                         scheme);
    text += sizeof(scheme) - 1;
    len -= sizeof(scheme) - 1;
    const char *slash = memchr(text, '/', len);
    size_t n = slash != NULL ? (size_t)(slash - text) : len;
    if (len - n != 1 + 32 + 1 + 32 || slash[33] != '/' ||
        !hex_parse(slash + 1, 32, i.id.bytes, 16) || !hex_parse(slash + 34, 32, i.token, 16))
        return error_set(
            err, E_INVALID,
            "the invite is not whole: it ends in two numbers of 32 hexadecimal digits. "
            "Copy the whole line");
    if (parse_addresses(text, n, &i) != 0)
        return error_set(err, E_INVALID,
                         "the invite's addresses are not 1 to %d of the form 192.0.2.1:8421",
                         INVITE_ADDRESSES_MAX);
    *ret = i;
    return 0;
}

int invite_line_format(const struct invite_line *i, char *ret_text, size_t size)
{
    char id[33], token[33], address[TEXT_ADDRESS_BYTES];
    size_t len = (size_t)snprintf(ret_text, size, "%s", scheme);
    for (uint32_t k = 0; k < i->n_addresses && len < size; k++)
        len += (size_t)snprintf(ret_text + len, size - len, "%s%s", k > 0 ? "," : "",
                                address_text(&i->address[k], address));
    hex_format(i->id.bytes, 16, id);
    hex_format(i->token, 16, token);
    if (len < size)
        len += (size_t)snprintf(ret_text + len, size - len, "/%s/%s", id, token);
    return len < size ? 0 : E_LIMIT;
}
