#include "cli/rank_options.h"

#include "cli/cli.h"

int rank_option_take(struct local_set_options *set, enum rank_option id, const char *value,
                     struct error *err)
{
    switch (id) {
    case RANK_OPTION_RANKS:
        return cli_parse_u32("--ranks", value, 1, LIMIT_RANKS, &set->n_ranks, err);
    case RANK_OPTION_SPLIT:
        set->split = value;
        return 0;
    case RANK_OPTION_COMM:
        set->has_comm = true;
        return cli_parse_comm(value, &set->processes, err);
    case RANK_OPTION_WIRE:
        return comm_wire_parse(value, &set->wire)
                   ? 0
                   : error_set(err, E_INVALID, "--wire %s: f32, f16 or q8", value);
    case RANK_OPTION_KV:
        return kv_type_parse(value, &set->engine.kv_type)
                   ? 0
                   : error_set(err, E_INVALID, "--kv %s: f16 or q8", value);
    case RANK_OPTION_DRAFT:
        return cli_parse_u32("--draft", value, 0, LIMIT_DRAFT_TOKENS, &set->n_draft, err);
    case RANK_OPTION_CHUNK:
        return cli_parse_u32("--chunk", value, 1, LIMIT_BATCH_TOKENS, &set->n_chunk, err);
    case RANK_OPTION_THREADS:
        return cli_parse_u32("--threads", value, 1, 1024, &set->engine.n_threads, err);
    case RANK_OPTION_PIN:
        set->pin = true;
        return 0;
    case RANK_OPTION_NO_REPACK:
        set->engine.no_repack = true;
        return 0;
    }
    return error_set(err, E_INTERNAL, "option %d is unknown", (int)id);
}

void rank_options_finish(struct local_set_options *set)
{
    if (!set->has_comm)
        set->processes = set->n_ranks > 1;
    if (set->engine.n_threads == 0)
        set->engine.n_threads = cli_default_threads(set->n_ranks);
}
