#include "cli/instance_options.h"

#include "base/json.h"
#include "cli/cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The node has another working folder: it gets the whole path of a file that is there; a name is
 * looked up by the node, in its data folder. */
static int take_model(const char *option, const char *value, char *ret, size_t size,
                      struct error *err)
{
    char *path = realpath(value, NULL);
    int n = snprintf(ret, size, "%s", path != NULL ? path : value);
    free(path);
    return n > 0 && (size_t)n < size
               ? 0
               : error_set(err, E_INVALID, "%s: must have 1 to %zu bytes", option, size - 1);
}

int instance_option_take(struct instance_options *o, enum instance_option id, const char *value,
                         struct error *err)
{
    int rc;
    switch (id) {
    case INSTANCE_OPTION_CTX:
        return cli_parse_u32("--ctx", value, 16, LIMIT_CONTEXT_TOKENS, &o->n_ctx, err);
    case INSTANCE_OPTION_SLOTS:
        return cli_parse_u32("--slots", value, 1, LIMIT_SLOTS, &o->n_slots, err);
    case INSTANCE_OPTION_KV_TOKENS:
        return cli_parse_u32("--kv-tokens", value, 16, UINT32_MAX, &o->n_kv_tokens, err);
    case INSTANCE_OPTION_KV:
        return cli_parse_kv("--kv", value, &o->kv_type, err);
    case INSTANCE_OPTION_WIRE:
        return cli_parse_wire("--wire", value, &o->wire, err);
    case INSTANCE_OPTION_TRANSPORT:
        return comm_transport_parse(value, &o->transport)
                   ? 0
                   : error_set(err, E_INVALID, "--transport %s: tcp or ucx", value);
    case INSTANCE_OPTION_DRAFT:
        rc = cli_parse_u32("--draft", value, 0, LIMIT_DRAFT_TOKENS, &o->n_draft, err);
        if (rc == 0 && o->n_draft == 0)
            o->n_draft = INSTANCE_NO_DRAFT;
        return rc;
    case INSTANCE_OPTION_DRAFT_MODEL:
        return take_model("--draft-model", value, o->draft_model, sizeof(o->draft_model), err);
    case INSTANCE_OPTION_CHUNK:
        return cli_parse_u32("--chunk", value, 1, LIMIT_BATCH_TOKENS, &o->n_chunk, err);
    case INSTANCE_OPTION_END:
        break;
    }
    return error_set(err, E_INTERNAL, "option %d is unknown", (int)id);
}

const char *instance_option_word(enum instance_option id)
{
    static const char *const words[N_INSTANCE_OPTIONS] = {"--ctx",   "--slots",       "--kv-tokens",
                                                          "--kv",    "--wire",        "--transport",
                                                          "--draft", "--draft-model", "--chunk"};
    return words[id - INSTANCE_OPTION_FIRST];
}

void instance_options_append_json(struct buf *b, const struct instance_options *o)
{
    const struct {
        const char *key;
        uint32_t value;
    } numbers[] = {{"n_ctx", o->n_ctx},
                   {"n_slots", o->n_slots},
                   {"n_kv_tokens", o->n_kv_tokens},
                   {"n_chunk", o->n_chunk}};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (numbers[i].value != 0)
            buf_printf(b, ",\"%s\":%u", numbers[i].key, numbers[i].value);
    if (o->n_draft != 0)
        buf_printf(b, ",\"n_draft\":%u", o->n_draft == INSTANCE_NO_DRAFT ? 0 : o->n_draft);
    if (o->draft_model[0] != '\0') {
        buf_append_str(b, ",\"draft_model\":");
        json_append_string(b, o->draft_model, strlen(o->draft_model));
    }
    if (o->kv_type != KV_F16)
        buf_printf(b, ",\"kv_type\":\"%s\"", kv_type_name(o->kv_type));
    if (o->wire != COMM_WIRE_F32)
        buf_printf(b, ",\"wire\":\"%s\"", comm_wire_name(o->wire));
    if (o->transport != COMM_TCP)
        buf_printf(b, ",\"transport\":\"%s\"", comm_transport_name(o->transport));
}
