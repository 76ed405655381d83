/*
 * Grammars of requests, compiled by a thread of its own beside the step loop: the model's tokenizer
 * is read and prepared when the first of them comes (a second and about 100 MB for 250,000 tokens),
 * and a compilation may take a while, too; steps go on meanwhile. Private to this folder. Thread:
 * the functions below are for the runner's main thread.
 */
#ifndef SHOAL_RUNNER_GRAMMARS_H
#define SHOAL_RUNNER_GRAMMARS_H

#include "base/error.h"
#include "runner/protocol.h"
#include "text/grammar.h"

struct grammars; /* opaque */

struct grammar_job { /* a request and its grammar */
    struct grammar_job *next;
    struct message_submit submit; /* its tokens are owned */
    uint64_t submitted_ns;
    struct grammar *grammar; /* has been told what was generated before; NULL: see error */
    struct error error;
};

/* For the tokenizer of this file. Starts the thread. Errors: E_NOMEM, E_INTERNAL. */
int grammars_new(const char *model_path, struct grammars **ret_grammars, struct error *err);
/* Does not wait: what is being compiled is dropped when it is done. NULL is fine. */
void grammars_free(struct grammars *g);

/* Takes m->tokens when it returns 0. Errors: E_BUSY, E_NOMEM. */
int grammars_submit(struct grammars *g, const struct message_submit *m, uint64_t now_ns,
                    struct error *err);
/* Forgets a request; false: it is not here. */
bool grammars_cancel(struct grammars *g, uint64_t request);
/* Requests that have not been taken. 0 for NULL. */
uint32_t grammars_n_waiting(struct grammars *g);
bool grammars_is_waiting(struct grammars *g, uint64_t request);
/* The next one that is done, in the order in which they came; NULL: none yet. Owns: the caller. */
struct grammar_job *grammars_take(struct grammars *g);
/* NULL is fine. */
void grammar_job_free(struct grammar_job *job);

#endif
