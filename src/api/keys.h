/*
 * API keys: who may do what, and how much of it. Keys come from a file that only its owner can
 * read, one a line:
 *
 *   # key or its hash      name    scopes           requests/min  tokens/min
 *   sha256:<64 hex digits> laptop  inference,read   60            100000
 *   sha256:<64 hex digits> owner   admin            -             -
 *
 * `-` or 0 is no limit; the last two may be left out. A key may also stand there itself (16 to 256
 * printable characters without spaces); nothing but SHA-256 of keys is kept in memory. Keys are
 * random and long, so that a fast hash does: there is nothing to guess.
 *
 * Limits are buckets that hold a minute's worth and fill evenly. Tokens are charged when they are
 * known, after the call: a bucket that went below zero refuses until it is above again.
 *
 * Thread: the loop's.
 */
#ifndef SHOAL_API_KEYS_H
#define SHOAL_API_KEYS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    API_KEYS_MAX = 1024,
    API_KEYS_FILE_BYTES_MAX = 1 << 18,
    API_KEY_NAME_BYTES = 65,
    API_KEY_LENGTH_MIN = 16, /* of a key's text */
    API_KEY_LENGTH_MAX = 256,
    API_KEY_HASH_BYTES = 32,
};

enum api_scope {
    API_SCOPE_INFERENCE = 1, /* text from models */
    API_SCOPE_READ = 2,      /* models and the cluster's state */
    API_SCOPE_ADMIN = 4,     /* orders to the cluster, and all the others */
};

struct api_bucket {
    double level;       /* what is left; below 0: owed */
    uint32_t n_per_min; /* and the most that it holds; 0: no limit */
    uint64_t filled_ns; /* when level was right; monotonic */
};

struct api_key {
    uint8_t hash[API_KEY_HASH_BYTES];
    char name[API_KEY_NAME_BYTES];
    unsigned scopes;
    struct api_bucket requests, tokens;
};

struct api_keys { /* of one file; never changes but for the buckets */
    struct api_key *list;
    size_t n;
};

/* Reads the file. Owns: the caller. Errors: E_IO (not there, no file, readable by others), E_FORMAT
 * with the line, E_LIMIT, E_NOMEM. */
int api_keys_load(const char *path, struct api_keys **ret_keys, struct error *err);
/* The same of its text. */
int api_keys_parse(const char *text, size_t len, struct api_keys **ret_keys, struct error *err);
void api_keys_free(struct api_keys *keys);

/* Takes as long whether and where the key is found. NULL: unknown. */
struct api_key *api_keys_find(const struct api_keys *keys, const char *text, size_t len);
/* Whether the key has one of these scopes. */
bool api_key_may(const struct api_key *key, unsigned scopes);
/* Takes a request out of its bucket. Returns 0, or the seconds (rounded up) until there is room for
 * it. is_inference: the bucket of tokens must not be empty either. */
uint32_t api_key_take_request(struct api_key *key, bool is_inference, uint64_t now_ns);
void api_key_charge_tokens(struct api_key *key, uint64_t n, uint64_t now_ns);
/* Writes the hash as it stands in the file: "sha256:" and 64 digits. */
void api_key_hash_text(const char *key, size_t len, char ret_text[72]);

#endif
