/*
 * A vocabulary: each token's text as the file has it, the bytes it stands for in output, its type,
 * and an index from text to id. Owns everything it points to. Never splits or merges text: that is
 * bpe.c and spm.c. Thread: immutable once loaded.
 */
#ifndef SHOAL_TEXT_VOCAB_H
#define SHOAL_TEXT_VOCAB_H

#include "base/error.h"
#include "model/gguf.h"
#include "text/tokenizer.h"

enum token_type { /* numbers of the GGUF format */
                  TOKEN_TYPE_NORMAL = 1,
                  TOKEN_TYPE_UNKNOWN = 2,
                  TOKEN_TYPE_CONTROL = 3,
                  TOKEN_TYPE_USER = 4,
                  TOKEN_TYPE_UNUSED = 5,
                  TOKEN_TYPE_BYTE = 6,
};

enum vocab_kind { VOCAB_BPE, VOCAB_SPM };

/* Longer tokens exist in no real vocabulary; they are kept for output but never made from text, so
 * that a bad file cannot make every merge hash megabytes. */
enum { VOCAB_TOKEN_BYTES_MAX = 1024 };

struct vocab_slot {
    uint32_t hash;
    uint32_t token; /* id + 1, 0 when free */
};

struct vocab {
    enum vocab_kind kind;
    uint32_t n;
    char *text;            /* all texts one after another */
    uint32_t *text_start;  /* [n + 1] */
    char *piece;           /* all output bytes */
    uint32_t *piece_start; /* [n + 1] */
    uint8_t *type;         /* [n] enum token_type */
    uint64_t seed;         /* of the index: a file cannot choose texts that collide */
    struct vocab_slot *slots;
    uint32_t slot_mask;
};

/* Reads tokens and types. Errors: E_NOTFOUND, E_FORMAT, E_LIMIT, E_NOMEM. The vocabulary must be
 * done after a failure too. */
int vocab_load(struct vocab *v, enum vocab_kind kind, const struct gguf_file *file,
               struct error *err);
/* Works out the output bytes once types are final. Errors: E_FORMAT (a byte token's text), E_NOMEM.
 */
int vocab_make_pieces(struct vocab *v, struct error *err);
void vocab_done(struct vocab *v);

const char *vocab_text(const struct vocab *v, token_id id, size_t *ret_len);
/* The first token with this text, -1 when there is none. */
token_id vocab_find(const struct vocab *v, const char *text, size_t len);
/* Likewise, but only tokens that plain text may become: normal and user-defined ones. */
token_id vocab_find_plain(const struct vocab *v, const char *text, size_t len);
/* The token that stands for one byte: <0xNN> in SentencePiece, the mapped character in byte-level
 * BPE; -1 when there is none. */
token_id vocab_find_byte(const struct vocab *v, uint8_t byte);

/* The value of a required array of this item kind (integers and floats count as one each). Errors:
 * E_NOTFOUND, E_FORMAT. */
int vocab_array(const struct gguf_file *file, const char *key, enum gguf_kind item_kind,
                const struct gguf_value **ret_value, struct error *err);

/* Fast hash of bytes; not for untrusted keys without a secret seed. */
uint64_t vocab_hash(uint64_t seed, const char *text, size_t len);

/* GPT-2's reversible map of bytes to printable characters: writes 1-2 bytes of UTF-8. */
size_t byte_to_char(uint8_t byte, char ret_text[4]);

#endif
