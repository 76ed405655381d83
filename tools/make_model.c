/*
 * shoal-make-model: writes GGUF models for tests and measurements. Either a model of any shape with
 * random weights, the same ones for the same seed, or a real model again with its weights in
 * another type.
 */
#include "model/dtype.h"
#include "model_maker.h"

#include <ggml.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const char usage[] =
    "usage: shoal-make-model [options] OUTPUT.gguf\n"
    "A model with random weights:\n"
    "  --arch llama|gemma3   architecture (llama)\n"
    "  --layers N            (2)            --embd N      embedding width (64)\n"
    "  --ff N                (4 x embd)     --heads N     (4)\n"
    "  --kv-heads N          (heads)        --head-dim N  (embd / heads)\n"
    "  --vocab N             (512)          --ctx N       context length (2048)\n"
    "  --window N            sliding window of gemma3 (512)\n"
    "  --rope-base X         (10000)        --seed N      (1)\n"
    "  --tied                no output tensor: the head uses the embedding (always so in gemma3)\n"
    "  --tokenizer FROM.gguf vocabulary of that file instead of a minimal one of bytes\n"
    "  --name TEXT           general.name\n"
    "A real model with other types:\n"
    "  --dequantize FROM.gguf\n"
    "Types, for both (F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K .. Q6_K, IQ4_NL, ...):\n"
    "  --type T              of all matrices (Q4_0; F32 with --dequantize)\n"
    "  --role-type ROLE=T    of one role, such as attn_out or ffn_down\n"
    "  --output-type T, --embd-type T   the same for output and token_embd\n";

enum option_code {
    OPT_LAYERS = 1,
    OPT_EMBD,
    OPT_FF,
    OPT_HEADS,
    OPT_KV_HEADS,
    OPT_HEAD_DIM,
    OPT_VOCAB,
    OPT_CTX,
    OPT_WINDOW, /* numbers */
    OPT_ARCH,
    OPT_ROPE_BASE,
    OPT_SEED,
    OPT_TIED,
    OPT_TOKENIZER,
    OPT_NAME,
    OPT_DEQUANTIZE,
    OPT_TYPE,
    OPT_ROLE_TYPE,
    OPT_OUTPUT_TYPE,
    OPT_EMBD_TYPE,
    OPT_HELP,
};

static const struct option long_options[] = {
    {"layers", required_argument, NULL, OPT_LAYERS},
    {"embd", required_argument, NULL, OPT_EMBD},
    {"ff", required_argument, NULL, OPT_FF},
    {"heads", required_argument, NULL, OPT_HEADS},
    {"kv-heads", required_argument, NULL, OPT_KV_HEADS},
    {"head-dim", required_argument, NULL, OPT_HEAD_DIM},
    {"vocab", required_argument, NULL, OPT_VOCAB},
    {"ctx", required_argument, NULL, OPT_CTX},
    {"window", required_argument, NULL, OPT_WINDOW},
    {"arch", required_argument, NULL, OPT_ARCH},
    {"rope-base", required_argument, NULL, OPT_ROPE_BASE},
    {"seed", required_argument, NULL, OPT_SEED},
    {"tied", no_argument, NULL, OPT_TIED},
    {"tokenizer", required_argument, NULL, OPT_TOKENIZER},
    {"name", required_argument, NULL, OPT_NAME},
    {"dequantize", required_argument, NULL, OPT_DEQUANTIZE},
    {"type", required_argument, NULL, OPT_TYPE},
    {"role-type", required_argument, NULL, OPT_ROLE_TYPE},
    {"output-type", required_argument, NULL, OPT_OUTPUT_TYPE},
    {"embd-type", required_argument, NULL, OPT_EMBD_TYPE},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

#define TYPE_UNSET (-1)

static int find_type(const char *name)
{
    for (uint32_t type = 0; type < GGML_TYPE_COUNT; type++)
        if (dtype_traits(type) != NULL && strcasecmp(dtype_traits(type)->name, name) == 0)
            return (int)type;
    return TYPE_UNSET;
}

static bool parse_number(const char *text, uint64_t max, uint64_t *ret)
{
    char *end;
    *ret = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && *ret <= max;
}

/* "ROLE=TYPE" */
static bool parse_role_type(const char *text, int *types)
{
    const char *equals = strchr(text, '=');
    for (int role = 0; equals != NULL && role < ROLE_COUNT; role++) {
        const char *name = role_name((enum role)role);
        if (strlen(name) == (size_t)(equals - text) && memcmp(name, text, strlen(name)) == 0)
            return (types[role] = find_type(equals + 1)) != TYPE_UNSET;
    }
    return false;
}

static bool parse_option(struct maker_options *o, int code, const char *value, int *ret_type)
{
    uint32_t *const numbers[] = {
        [OPT_LAYERS] = &o->n_layer, [OPT_EMBD] = &o->n_embd,        [OPT_FF] = &o->n_ff,
        [OPT_HEADS] = &o->n_head,   [OPT_KV_HEADS] = &o->n_head_kv, [OPT_HEAD_DIM] = &o->head_dim,
        [OPT_VOCAB] = &o->n_vocab,  [OPT_CTX] = &o->n_ctx,          [OPT_WINDOW] = &o->window,
    };
    uint64_t number;
    char *end;
    switch (code) {
    case OPT_ARCH:
        o->arch = value;
        return true;
    case OPT_ROPE_BASE:
        o->rope_base = strtof(value, &end);
        return *end == '\0' && o->rope_base > 0;
    case OPT_SEED:
        return parse_number(value, UINT64_MAX, &o->seed);
    case OPT_TIED:
        return o->tied = true;
    case OPT_TOKENIZER:
        o->tokenizer = value;
        return true;
    case OPT_NAME:
        o->name = value;
        return true;
    case OPT_DEQUANTIZE:
        o->source = value;
        return true;
    case OPT_TYPE:
        return (*ret_type = find_type(value)) != TYPE_UNSET;
    case OPT_ROLE_TYPE:
        return parse_role_type(value, o->type);
    case OPT_OUTPUT_TYPE:
        return (o->type[ROLE_OUTPUT] = find_type(value)) != TYPE_UNSET;
    case OPT_EMBD_TYPE:
        return (o->type[ROLE_TOKEN_EMBD] = find_type(value)) != TYPE_UNSET;
    default:
        if (!parse_number(value, 1u << 24, &number) || number == 0)
            return false;
        *numbers[code] = (uint32_t)number;
        return true;
    }
}

/* Types that ggml can make without statistics of activations. */
static bool can_make(int type)
{
    enum ggml_type t = (enum ggml_type)type;
    if (t == GGML_TYPE_F32 || t == GGML_TYPE_F16 || t == GGML_TYPE_BF16)
        return true;
    return ggml_is_quantized(t) && t != GGML_TYPE_Q8_1 && t != GGML_TYPE_Q8_K &&
           !ggml_quantize_requires_imatrix(t);
}

/* Roles without a type of their own get the general one. Returns a type that cannot be made, or
 * TYPE_UNSET. */
static int settle_types(struct maker_options *o, int type)
{
    if (type == TYPE_UNSET)
        type = o->source != NULL ? DTYPE_F32 : DTYPE_Q4_0;
    for (int role = 0; role < ROLE_COUNT; role++) {
        if (o->type[role] == TYPE_UNSET)
            o->type[role] = type;
        if (!can_make(o->type[role]))
            return o->type[role];
    }
    return TYPE_UNSET;
}

int main(int argc, char **argv)
{
    struct maker_options o = {.arch = "llama",
                              .n_layer = 2,
                              .n_embd = 64,
                              .n_head = 4,
                              .n_vocab = 512,
                              .n_ctx = 2048,
                              .window = 512,
                              .rope_base = 10000.0f,
                              .seed = 1};
    int code, type = TYPE_UNSET;
    for (int role = 0; role < ROLE_COUNT; role++)
        o.type[role] = TYPE_UNSET;
    for (int index = 0; (code = getopt_long(argc, argv, "", long_options, &index)) != -1;) {
        if (code == OPT_HELP) {
            fputs(usage, stdout);
            return 0;
        }
        if (code == '?')
            return 64;
        if (!parse_option(&o, code, optarg, &type)) {
            fprintf(stderr, "shoal-make-model: --%s '%s' is not valid\n", long_options[index].name,
                    optarg);
            return 64;
        }
    }
    if (optind != argc - 1) {
        fputs(usage, stderr);
        return 64;
    }
    o.output = argv[optind];
    int bad_type = settle_types(&o, type);
    if (bad_type != TYPE_UNSET) {
        fprintf(stderr, "shoal-make-model: weights of type %s cannot be made\n",
                dtype_traits((uint32_t)bad_type)->name);
        return 64;
    }
    struct error err = {0};
    int rc = o.source != NULL ? maker_convert(&o, &err) : maker_random(&o, &err);
    if (rc != 0)
        fprintf(stderr, "shoal-make-model: %s\n", err.message);
    return error_exit_code(rc);
}
