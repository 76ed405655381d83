/*
 * DNS messages as multicast DNS uses them: a reader for hostile bytes, which never leaves the
 * packet and always ends, and a writer with name compression. Used by discovery only. Source: RFC
 * 1035 section 4, RFC 6762 section 18. Thread: data, pure functions.
 */
#ifndef SHOAL_MESH_DISCOVERY_DNS_H
#define SHOAL_MESH_DISCOVERY_DNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DNS_TYPE_A = 1,
    DNS_TYPE_PTR = 12,
    DNS_TYPE_TXT = 16,
    DNS_TYPE_AAAA = 28,
    DNS_TYPE_SRV = 33,
    DNS_TYPE_ANY = 255,
    DNS_CLASS_IN = 1,
    DNS_CLASS_ANY = 255,
    DNS_FLAG_RESPONSE = 0x8000,
    DNS_FLAG_AUTHORITATIVE = 0x0400,
    DNS_FLAG_TRUNCATED = 0x0200,
    DNS_MASK_STRANGE = 0x780f, /* opcode and result: packets with any of these set are ignored */
    DNS_NAME_BYTES_MAX = 255,
    DNS_LABEL_BYTES_MAX = 63,
    DNS_PACKET_BYTES_MAX = 9000, /* that may come in; RFC 6762 section 17 */
    DNS_WRITE_BYTES_MAX = 1440,  /* that we send: one IPv6 packet on Ethernet */
    DNS_RECORDS_MAX = 512,       /* in one packet */
};

struct dns_name { /* labels with their lengths, the empty one at the end included */
    uint8_t bytes[DNS_NAME_BYTES_MAX + 1];
    uint8_t len;   /* 1: the root */
    uint32_t hash; /* of the lower-case name: equal names have equal hashes */
};

/* From text with dots, such as "_http._tcp.local"; label (may be NULL) is put before it as one
 * label, whatever its bytes. Texts are ours and fit: asserted. */
void dns_name_make(struct dns_name *n, const char *label, const char *text);
/* Without regard to the case of ASCII letters. */
bool dns_name_equal(const struct dns_name *a, const struct dns_name *b);
/* Whether name is one label longer than parent and ends with it. */
bool dns_name_is_child(const struct dns_name *name, const struct dns_name *parent);

struct dns_reader {
    const uint8_t *data;
    size_t size, offset;
    uint16_t flags;
    uint32_t n_questions, n_answers, n_authorities, n_additionals; /* still to read */
};

struct dns_question {
    struct dns_name name;
    uint16_t type, class; /* the class without the bit that wants a unicast answer */
};

struct dns_record {
    struct dns_name name;
    uint16_t type, class;
    bool is_flush; /* other records of this name and type are void */
    bool is_authority;
    uint32_t ttl_s;
    const uint8_t *data; /* [data_len], inside the packet */
    uint16_t data_len;
};

/* Returns false when the packet is not a DNS message or has too many records. */
bool dns_open(struct dns_reader *r, const void *data, size_t size);
/* 1: there is one; 0: no more; -1: malformed. Questions are to be read before records. */
int dns_next_question(struct dns_reader *r, struct dns_question *ret);
int dns_next_record(struct dns_reader *r, struct dns_record *ret);
/* Whether every question and record can be read. */
bool dns_check(const void *data, size_t size);
/* The name at a record's offset (PTR: 0, SRV: 6), which must end exactly at the end of its data. */
bool dns_record_name(const struct dns_reader *r, const struct dns_record *record, size_t offset,
                     struct dns_name *ret);

struct dns_writer { /* a failure sticks; check at the end */
    uint8_t data[DNS_WRITE_BYTES_MAX];
    size_t len;
    bool is_full;
    uint16_t suffix[64]; /* offsets of labels written so far, for compression */
    uint32_t n_suffixes;
};

void dns_write_begin(struct dns_writer *w, uint16_t flags);
void dns_write_question(struct dns_writer *w, const struct dns_name *name, uint16_t type);
/* A record up to its data; dns_write_end_record() then fills in the length. */
enum dns_section { DNS_ANSWER, DNS_ADDITIONAL }; /* answers are to be written first */
size_t dns_write_record(struct dns_writer *w, enum dns_section section, const struct dns_name *name,
                        uint16_t type, bool is_flush, uint32_t ttl_s);
void dns_write_end_record(struct dns_writer *w, size_t record);
void dns_write_name(struct dns_writer *w, const struct dns_name *name);
void dns_write_u16(struct dns_writer *w, uint16_t v);
void dns_write_bytes(struct dns_writer *w, const void *data, size_t n);
/* One "key=value" of a TXT record, cut at 255 bytes. */
void dns_write_text(struct dns_writer *w, const char *key, const char *value);

#endif
