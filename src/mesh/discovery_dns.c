/* See discovery_dns.h. */
#include "mesh/discovery_dns.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

enum { HEADER_BYTES = 12, CLASS_TOP_BIT = 0x8000, POINTER_MASK = 0xc0 };

static uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

/* FNV-1a. It only saves comparisons: who makes names collide costs us a comparison each. */
static uint32_t hash_name(const struct dns_name *n)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < n->len; i++)
        hash = (hash ^ lower(n->bytes[i])) * 16777619u;
    return hash;
}

static void append_label(struct dns_name *n, const char *label, size_t len)
{
    assert(len > 0 && len <= DNS_LABEL_BYTES_MAX && n->len + len + 2 <= DNS_NAME_BYTES_MAX);
    n->bytes[n->len] = (uint8_t)len;
    memcpy(n->bytes + n->len + 1, label, len);
    n->len = (uint8_t)(n->len + 1 + len);
}

void dns_name_make(struct dns_name *n, const char *label, const char *text)
{
    memset(n, 0, sizeof(*n));
    if (label != NULL)
        append_label(n, label, strlen(label));
    while (*text != '\0') {
        size_t len = strcspn(text, ".");
        append_label(n, text, len);
        text += len + (text[len] == '.');
    }
    n->bytes[n->len++] = 0;
    n->hash = hash_name(n);
}

/* Lengths of labels are below 'A', so folding the case of all bytes leaves them alone. */
static bool equal_bytes(const uint8_t *a, const uint8_t *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (lower(a[i]) != lower(b[i]))
            return false;
    return true;
}

bool dns_name_equal(const struct dns_name *a, const struct dns_name *b)
{
    return a->hash == b->hash && a->len == b->len && equal_bytes(a->bytes, b->bytes, a->len);
}

bool dns_name_is_child(const struct dns_name *name, const struct dns_name *parent)
{
    size_t label = (size_t)name->bytes[0] + 1;
    return name->bytes[0] > 0 && label + parent->len == name->len &&
           equal_bytes(name->bytes + label, parent->bytes, parent->len);
}

/* ---- reading ---- */

static uint16_t get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)get_u16(p) << 16 | get_u16(p + 2);
}

/* Reads the name at *offset and moves it behind. A pointer must lead to before the place where the
 * piece that contains it began, so that reading ends. */
static bool read_name(const uint8_t *data, size_t size, size_t *offset, struct dns_name *ret)
{
    size_t at = *offset, piece = *offset;
    bool is_moved = false;
    size_t n = 0;
    for (;;) {
        if (at >= size)
            return false;
        uint8_t len = data[at];
        if ((len & POINTER_MASK) == POINTER_MASK) {
            if (size - at < 2)
                return false;
            size_t target = get_u16(data + at) & 0x3fff;
            if (target >= piece || target < HEADER_BYTES)
                return false;
            if (!is_moved)
                *offset = at + 2;
            is_moved = true;
            at = piece = target;
            continue;
        }
        if ((len & POINTER_MASK) != 0 || size - at < (size_t)len + 1 ||
            n + len + 1 > DNS_NAME_BYTES_MAX)
            return false;
        memcpy(ret->bytes + n, data + at, (size_t)len + 1);
        n += (size_t)len + 1;
        at += (size_t)len + 1;
        if (len == 0)
            break;
    }
    if (!is_moved)
        *offset = at;
    ret->len = (uint8_t)n;
    ret->hash = hash_name(ret);
    return true;
}

bool dns_open(struct dns_reader *r, const void *data, size_t size)
{
    memset(r, 0, sizeof(*r));
    if (size < HEADER_BYTES || size > DNS_PACKET_BYTES_MAX)
        return false;
    r->data = data;
    r->size = size;
    r->offset = HEADER_BYTES;
    r->flags = get_u16(r->data + 2);
    r->n_questions = get_u16(r->data + 4);
    r->n_answers = get_u16(r->data + 6);
    r->n_authorities = get_u16(r->data + 8);
    r->n_additionals = get_u16(r->data + 10);
    return r->n_questions + r->n_answers + r->n_authorities + r->n_additionals <= DNS_RECORDS_MAX;
}

int dns_next_question(struct dns_reader *r, struct dns_question *ret)
{
    if (r->n_questions == 0)
        return 0;
    r->n_questions--;
    if (!read_name(r->data, r->size, &r->offset, &ret->name) || r->size - r->offset < 4)
        return -1;
    ret->type = get_u16(r->data + r->offset);
    ret->class = get_u16(r->data + r->offset + 2) & (uint16_t)~CLASS_TOP_BIT;
    r->offset += 4;
    return 1;
}

int dns_next_record(struct dns_reader *r, struct dns_record *ret)
{
    ret->is_authority = r->n_answers == 0 && r->n_authorities > 0;
    if (r->n_answers > 0)
        r->n_answers--;
    else if (r->n_authorities > 0)
        r->n_authorities--;
    else if (r->n_additionals > 0)
        r->n_additionals--;
    else
        return 0;
    if (!read_name(r->data, r->size, &r->offset, &ret->name) || r->size - r->offset < 10)
        return -1;
    const uint8_t *p = r->data + r->offset;
    ret->type = get_u16(p);
    ret->class = get_u16(p + 2) & (uint16_t)~CLASS_TOP_BIT;
    ret->is_flush = (get_u16(p + 2) & CLASS_TOP_BIT) != 0;
    ret->ttl_s = get_u32(p + 4);
    ret->data_len = get_u16(p + 8);
    ret->data = p + 10;
    r->offset += 10;
    if (r->size - r->offset < ret->data_len)
        return -1;
    r->offset += ret->data_len;
    return 1;
}

bool dns_check(const void *data, size_t size)
{
    struct dns_reader r;
    struct dns_question question;
    struct dns_record record;
    int n;
    if (!dns_open(&r, data, size))
        return false;
    while ((n = dns_next_question(&r, &question)) > 0)
        ;
    while (n == 0 && (n = dns_next_record(&r, &record)) > 0)
        n = 0;
    return n == 0;
}

bool dns_record_name(const struct dns_reader *r, const struct dns_record *record, size_t offset,
                     struct dns_name *ret)
{
    if (record->data_len <= offset)
        return false;
    size_t begin = (size_t)(record->data - r->data), end = begin + record->data_len;
    size_t at = begin + offset;
    /* Bytes behind the record are none of its name's. */
    return read_name(r->data, end, &at, ret) && at == end;
}

/* ---- writing ---- */

void dns_write_bytes(struct dns_writer *w, const void *data, size_t n)
{
    if (w->is_full || sizeof(w->data) - w->len < n) {
        w->is_full = true;
        return;
    }
    if (n > 0)
        memcpy(w->data + w->len, data, n);
    w->len += n;
}

void dns_write_u16(struct dns_writer *w, uint16_t v)
{
    dns_write_bytes(w, (uint8_t[]){(uint8_t)(v >> 8), (uint8_t)v}, 2);
}

void dns_write_begin(struct dns_writer *w, uint16_t flags)
{
    *w = (struct dns_writer){.len = 0};
    dns_write_u16(w, 0);
    dns_write_u16(w, flags);
    dns_write_bytes(w, (uint8_t[8]){0}, 8);
}

static void count(struct dns_writer *w, size_t at)
{
    uint16_t v = (uint16_t)(get_u16(w->data + at) + 1);
    w->data[at] = (uint8_t)(v >> 8);
    w->data[at + 1] = (uint8_t)v;
}

/* Where the rest of a name was written before; 0: nowhere. */
static uint16_t find_suffix(const struct dns_writer *w, const uint8_t *rest, size_t len)
{
    for (uint32_t i = 0; i < w->n_suffixes; i++) {
        struct dns_name name;
        size_t at = w->suffix[i];
        if (read_name(w->data, w->len, &at, &name) && name.len == len &&
            memcmp(name.bytes, rest, len) == 0)
            return w->suffix[i];
    }
    return 0;
}

void dns_write_name(struct dns_writer *w, const struct dns_name *name)
{
    uint32_t n_known = w->n_suffixes; /* labels of this name cannot be pointed to before its end */
    for (size_t at = 0; name->bytes[at] != 0; at += (size_t)name->bytes[at] + 1) {
        uint32_t n_all = w->n_suffixes;
        w->n_suffixes = n_known;
        uint16_t before = find_suffix(w, name->bytes + at, name->len - at);
        w->n_suffixes = n_all;
        if (before != 0) {
            dns_write_u16(w, (uint16_t)(POINTER_MASK << 8 | before));
            return;
        }
        if (w->n_suffixes < sizeof(w->suffix) / sizeof(w->suffix[0]))
            w->suffix[w->n_suffixes++] = (uint16_t)w->len;
        dns_write_bytes(w, name->bytes + at, (size_t)name->bytes[at] + 1);
    }
    dns_write_bytes(w, "", 1);
}

void dns_write_question(struct dns_writer *w, const struct dns_name *name, uint16_t type)
{
    dns_write_name(w, name);
    dns_write_u16(w, type);
    dns_write_u16(w, DNS_CLASS_IN);
    count(w, 4);
}

size_t dns_write_record(struct dns_writer *w, enum dns_section section, const struct dns_name *name,
                        uint16_t type, bool is_flush, uint32_t ttl_s)
{
    dns_write_name(w, name);
    dns_write_u16(w, type);
    dns_write_u16(w, (uint16_t)(DNS_CLASS_IN | (is_flush ? CLASS_TOP_BIT : 0)));
    dns_write_u16(w, (uint16_t)(ttl_s >> 16));
    dns_write_u16(w, (uint16_t)ttl_s);
    dns_write_u16(w, 0);
    if (!w->is_full)
        count(w, section == DNS_ANSWER ? 6 : 10);
    return w->len;
}

void dns_write_end_record(struct dns_writer *w, size_t record)
{
    if (w->is_full)
        return;
    size_t n = w->len - record;
    w->data[record - 2] = (uint8_t)(n >> 8);
    w->data[record - 1] = (uint8_t)n;
}

void dns_write_text(struct dns_writer *w, const char *key, const char *value)
{
    char text[256];
    int n = snprintf(text, sizeof(text), "%s=%s", key, value);
    uint8_t len = n < 0 ? 0 : n > 255 ? 255 : (uint8_t)n;
    dns_write_bytes(w, &len, 1);
    dns_write_bytes(w, text, len);
}
