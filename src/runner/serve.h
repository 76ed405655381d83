/* The step loop of a loaded runner. Private to this folder. Thread: the runner's main thread. */
#ifndef SHOAL_RUNNER_SERVE_H
#define SHOAL_RUNNER_SERVE_H

#include "base/error.h"
#include "runner/control.h"
#include "runner/draft.h"

#include <stdint.h>

struct serve_options { /* all borrowed */
    struct control *control;
    struct engine *engine;
    struct comm *comm; /* NULL with one rank */
    uint32_t rank, n_ranks, n_stages;
    uint32_t rows_rank; /* first rank of the last stage: it has the sampled tokens */
    uint32_t n_vocab, n_ctx, timeout_ms;
    const char *model_path;                 /* whose tokenizer grammars are for; rank 0 */
    uint32_t n_chunk, n_draft;              /* of the scheduler; rank 0 */
    const struct draft_source *draft_model; /* likewise */
};

/* Waits until every rank has loaded: rank 0 returns when all are ready; the others report and
 * return, and get their first plan when all are. */
int serve_barrier(const struct serve_options *o, struct error *err);
/* Runs until the link ends (E_CANCELLED), the head says stop (0), or an error. */
int serve(const struct serve_options *o, struct error *err);

#endif
