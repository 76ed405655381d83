/* Options of the verbs that say how a model is to be run: `serve`, `local`, `load` and `plan`.
 * Thread: the main one. */
#ifndef SHOAL_CLI_INSTANCE_OPTIONS_H
#define SHOAL_CLI_INSTANCE_OPTIONS_H

#include "base/buf.h"
#include "base/error.h"
#include "cluster/state.h"

enum instance_option {
    INSTANCE_OPTION_FIRST = 2048,
    INSTANCE_OPTION_CTX = INSTANCE_OPTION_FIRST,
    INSTANCE_OPTION_SLOTS,
    INSTANCE_OPTION_KV_TOKENS,
    INSTANCE_OPTION_KV,
    INSTANCE_OPTION_WIRE,
    INSTANCE_OPTION_TRANSPORT,
    INSTANCE_OPTION_DRAFT,
    INSTANCE_OPTION_DRAFT_MODEL,
    INSTANCE_OPTION_CHUNK,
    INSTANCE_OPTION_END,
};
enum { N_INSTANCE_OPTIONS = INSTANCE_OPTION_END - INSTANCE_OPTION_FIRST };

/* Entries for getopt_long's table. */
/* clang-format off */
#define INSTANCE_OPTIONS \
    {"ctx", required_argument, NULL, INSTANCE_OPTION_CTX}, \
    {"slots", required_argument, NULL, INSTANCE_OPTION_SLOTS}, \
    {"kv-tokens", required_argument, NULL, INSTANCE_OPTION_KV_TOKENS}, \
    {"kv", required_argument, NULL, INSTANCE_OPTION_KV}, \
    {"wire", required_argument, NULL, INSTANCE_OPTION_WIRE}, \
    {"transport", required_argument, NULL, INSTANCE_OPTION_TRANSPORT}, \
    {"draft", required_argument, NULL, INSTANCE_OPTION_DRAFT}, \
    {"draft-model", required_argument, NULL, INSTANCE_OPTION_DRAFT_MODEL}, \
    {"chunk", required_argument, NULL, INSTANCE_OPTION_CHUNK}

#define INSTANCE_OPTIONS_HELP \
    "  --ctx N              tokens that one request may hold (the model's, at most 4096)\n" \
    "  --slots N            requests in one step (16); more wait\n" \
    "  --kv-tokens N        tokens that the KV cache holds for all requests together (four\n" \
    "                       times --ctx)\n" \
    "  --kv TYPE            elements of the KV cache: f16 (default), q8\n" \
    "  --wire TYPE          how activations travel between nodes: f32 (default), f16, q8\n" \
    "  --transport KIND     over what they travel: tcp (default; shared memory on one computer), ucx\n" \
    "  --draft N            guess up to N tokens ahead from what the text repeats (8; 0: never)\n" \
    "  --draft-model MODEL  a small one with the same vocabulary, which guesses where the text does\n" \
    "                       not repeat\n" \
    "  --chunk N            tokens of prompts in a step in which others decode (128)\n"
/* clang-format on */

/* Takes one of the options above. Errors: E_INVALID (names option and value). */
int instance_option_take(struct instance_options *o, enum instance_option id, const char *value,
                         struct error *err);
/* The option as people write it, with its dashes. */
const char *instance_option_word(enum instance_option id);
/* What was said, as further members of a JSON object, each with a comma before. */
void instance_options_append_json(struct buf *b, const struct instance_options *o);

#endif
