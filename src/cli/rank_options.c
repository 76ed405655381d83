#include "cli/rank_options.h"

#include "cli/cli.h"
#include "device/device.h"

#include <sched.h>
#include <stdio.h>

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
        return local_set_comm_parse(value, &set->comm)
                   ? 0
                   : error_set(err, E_INVALID,
                               "--comm %s: tcp, ucx (processes), local (threads) or mpi (what "
                               "mpirun started)",
                               value);
    case RANK_OPTION_WIRE:
        return cli_parse_wire("--wire", value, &set->wire, err);
    case RANK_OPTION_KV:
        return cli_parse_kv("--kv", value, &set->engine.kv_type, err);
    case RANK_OPTION_DRAFT:
        return cli_parse_u32("--draft", value, 0, LIMIT_DRAFT_TOKENS, &set->n_draft, err);
    case RANK_OPTION_DRAFT_MODEL:
        return cli_find_model(value, set->draft_path, sizeof(set->draft_path), err);
    case RANK_OPTION_CHUNK:
        return cli_parse_u32("--chunk", value, 1, LIMIT_BATCH_TOKENS, &set->n_chunk, err);
    case RANK_OPTION_THREADS:
        return cli_parse_u32("--threads", value, 1, 1024, &set->engine.n_threads, err);
    case RANK_OPTION_DEVICE:
        set->devices = value;
        return 0;
    case RANK_OPTION_PIN:
        set->pin = true;
        return 0;
    case RANK_OPTION_NO_REPACK:
        set->engine.no_repack = true;
        return 0;
    }
    return error_set(err, E_INTERNAL, "option %d is unknown", (int)id);
}

/* Ranks and threads of this one as mpirun has laid them out. */
static int ask_mpi(struct local_set_options *set, uint32_t *ret_n_threads, struct error *err)
{
    uint32_t n_ranks, n_here;
    int rc = comm_mpi_start(&set->mpi_rank, &n_ranks, err);
    if (rc == 0)
        rc = comm_mpi_count_host(&n_here, err);
    if (rc != 0)
        return rc;
    if (set->n_ranks != 0 && set->n_ranks != n_ranks)
        return error_set(err, E_INVALID,
                         "--ranks %u, but MPI started %u: say mpirun -n %u, or leave --ranks out",
                         set->n_ranks, n_ranks, set->n_ranks);
    set->n_ranks = n_ranks;
    /* mpirun may have bound this process to some of the processors. */
    cpu_set_t bound;
    *ret_n_threads = cli_default_threads(n_here);
    if (sched_getaffinity(0, sizeof(bound), &bound) == 0 &&
        (uint32_t)CPU_COUNT(&bound) < *ret_n_threads)
        *ret_n_threads = (uint32_t)CPU_COUNT(&bound);
    return 0;
}

int rank_options_finish(struct local_set_options *set, struct error *err)
{
    uint32_t n_threads = 0;
    int rc = 0;
    if (set->comm == LOCAL_SET_MPI)
        rc = ask_mpi(set, &n_threads, err);
    else if (set->comm == LOCAL_SET_UCX)
        rc = comm_check_transport(COMM_UCX, err);
    if (rc != 0)
        return rc;
    if (set->n_ranks == 0)
        set->n_ranks = 1;
    if (!set->has_comm)
        set->comm = set->n_ranks > 1 ? LOCAL_SET_TCP : LOCAL_SET_LOCAL;
    if (set->engine.n_threads == 0)
        set->engine.n_threads = n_threads != 0 ? n_threads : cli_default_threads(set->n_ranks);
    return 0;
}

void rank_options_fit(struct local_set_options *set, const struct model *model)
{
    uint64_t bytes = gguf_file_size(model->file), bytes_free = device_memory_bytes_free();
    if (set->engine.no_repack || bytes <= bytes_free)
        return;
    fprintf(stderr,
            "shoal: warning: the model has %.2f GiB, %.2f GiB of memory are free: its weights are "
            "read from disk as they are needed, which is slow\n",
            (double)bytes / (1 << 30), (double)bytes_free / (1 << 30));
    set->engine.no_repack = true;
}

bool rank_options_follows(const struct local_set_options *set)
{
    return set->comm == LOCAL_SET_MPI && set->mpi_rank != 0;
}

int rank_options_follow(const struct local_set_options *set, const char *model_name,
                        struct error *err)
{
    struct local_set_options o = *set;
    char path[4096];
    int rc = cli_find_model(model_name, path, sizeof(path), err);
    o.model_path = path;
    return rc != 0 ? rc : local_set_follow(&o, err);
}
