#include "runner/grammars.h"

#include "base/clock.h"
#include "base/log.h"
#include "model/gguf.h"
#include "text/tokenizer.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct grammars {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char model_path[4096];
    struct grammar_vocab *vocab; /* of the thread */

    /* under the mutex */
    struct grammar_job *first, **end; /* all requests, the oldest first */
    struct grammar_job *current;      /* the thread is at it; those before it are done */
    uint32_t n_waiting;
    bool is_closed;           /* the owner is gone: the thread frees all */
    bool is_current_unwanted; /* cancelled while the thread is at it */
};

void grammar_job_free(struct grammar_job *job)
{
    if (job == NULL)
        return;
    grammar_free(job->grammar);
    free((void *)(uintptr_t)job->submit.tokens);
    free(job);
}

/* ---- the thread ---- */

static int open_vocab(struct grammars *g, struct error *err)
{
    struct gguf_file *file = NULL;
    struct tokenizer *tokenizer = NULL;
    uint64_t start_ns = clock_now_ns();
    int rc = gguf_file_open(g->model_path, &file, err);
    if (rc == 0)
        rc = tokenizer_new(file, &tokenizer, err);
    if (file != NULL)
        gguf_file_close(file);
    if (rc == 0)
        rc = grammar_vocab_new(tokenizer, &g->vocab, err);
    if (rc == 0)
        log_info("runner", "tokens=%u ms=%.0f first grammar -> vocabulary prepared",
                 tokenizer_n_vocab(tokenizer), (double)(clock_now_ns() - start_ns) / 1e6);
    tokenizer_free(tokenizer);
    return rc != 0 ? error_wrap(err, rc, "the tokenizer of %s", g->model_path) : 0;
}

/* The grammar learns what was generated before, by another instance. */
static int replay(struct grammar *grammar, const struct message_submit *m, struct error *err)
{
    int rc = 0;
    for (uint32_t i = m->sampling.n_prompt; i < m->n_tokens && rc == 0; i++) {
        rc = grammar_accept(grammar, m->tokens[i], err);
        if (rc != 0)
            error_wrap(err, rc, "the answer so far, at token %u", i - m->sampling.n_prompt);
    }
    return rc;
}

static void work(struct grammars *g, struct grammar_job *job)
{
    const struct message_submit *m = &job->submit;
    int rc = g->vocab == NULL ? open_vocab(g, &job->error) : 0;
    if (rc == 0)
        rc = grammar_compile(g->vocab, m->grammar_kind, m->grammar, m->n_grammar_bytes,
                             &job->grammar, &job->error);
    if (rc == 0)
        rc = replay(job->grammar, m, &job->error);
    if (rc != 0) {
        grammar_free(job->grammar);
        job->grammar = NULL;
    }
}

static void free_all(struct grammars *g)
{
    while (g->first != NULL) {
        struct grammar_job *next = g->first->next;
        grammar_job_free(g->first);
        g->first = next;
    }
    grammar_vocab_free(g->vocab);
    pthread_cond_destroy(&g->changed);
    pthread_mutex_destroy(&g->mutex);
    free(g);
}

static void unlink_job(struct grammars *g, struct grammar_job *job)
{
    struct grammar_job **at = &g->first;
    while (*at != job)
        at = &(*at)->next;
    *at = job->next;
    if (g->end == &job->next)
        g->end = at;
    g->n_waiting--;
}

static void *run(void *arg)
{
    struct grammars *g = arg;
    pthread_mutex_lock(&g->mutex);
    while (!g->is_closed) {
        struct grammar_job *job = g->current;
        if (job == NULL) {
            pthread_cond_wait(&g->changed, &g->mutex);
            continue;
        }
        pthread_mutex_unlock(&g->mutex);
        work(g, job);
        pthread_mutex_lock(&g->mutex);
        g->current = job->next;
        if (g->is_current_unwanted) {
            g->is_current_unwanted = false;
            unlink_job(g, job);
            grammar_job_free(job);
        }
    }
    pthread_mutex_unlock(&g->mutex);
    free_all(g);
    return NULL;
}

/* ---- the main thread ---- */

int grammars_new(const char *model_path, struct grammars **ret_grammars, struct error *err)
{
    pthread_t thread;
    pthread_attr_t attributes;
    struct grammars *g = calloc(1, sizeof(*g));
    if (g == NULL)
        return error_set(err, E_NOMEM, "no memory for grammars");
    snprintf(g->model_path, sizeof(g->model_path), "%s", model_path);
    g->end = &g->first;
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->changed, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int code = pthread_create(&thread, &attributes, run, g);
    pthread_attr_destroy(&attributes);
    if (code != 0) {
        free_all(g);
        return error_set(err, E_INTERNAL, "cannot start a thread for grammars: %s", strerror(code));
    }
    *ret_grammars = g;
    return 0;
}

void grammars_free(struct grammars *g)
{
    if (g == NULL)
        return;
    pthread_mutex_lock(&g->mutex);
    g->is_closed = true;
    pthread_cond_signal(&g->changed);
    pthread_mutex_unlock(&g->mutex);
}

int grammars_submit(struct grammars *g, const struct message_submit *m, uint64_t now_ns,
                    struct error *err)
{
    struct grammar_job *job = calloc(1, sizeof(*job));
    if (job == NULL)
        return error_set(err, E_NOMEM, "no memory for a request");
    job->submit = *m;
    job->submitted_ns = now_ns;
    pthread_mutex_lock(&g->mutex);
    bool is_full = g->n_waiting >= LIMIT_REQUESTS_QUEUED;
    if (!is_full) {
        *g->end = job;
        g->end = &job->next;
        g->n_waiting++;
        if (g->current == NULL)
            g->current = job;
        pthread_cond_signal(&g->changed);
    }
    pthread_mutex_unlock(&g->mutex);
    if (!is_full)
        return 0;
    free(job);
    return error_set(err, E_BUSY, "%d requests wait for their grammars already",
                     LIMIT_REQUESTS_QUEUED);
}

static struct grammar_job *find(const struct grammars *g, uint64_t request)
{
    struct grammar_job *job = g->first;
    while (job != NULL && job->submit.request != request)
        job = job->next;
    return job == g->current && g->is_current_unwanted ? NULL : job;
}

bool grammars_cancel(struct grammars *g, uint64_t request)
{
    if (g == NULL)
        return false;
    pthread_mutex_lock(&g->mutex);
    struct grammar_job *job = find(g, request), *unwanted = NULL;
    if (job != NULL && job == g->current) {
        g->is_current_unwanted = true;
    } else if (job != NULL) {
        unlink_job(g, job);
        unwanted = job;
    }
    pthread_mutex_unlock(&g->mutex);
    grammar_job_free(unwanted);
    return job != NULL;
}

uint32_t grammars_n_waiting(struct grammars *g)
{
    if (g == NULL)
        return 0;
    pthread_mutex_lock(&g->mutex);
    uint32_t n = g->n_waiting;
    pthread_mutex_unlock(&g->mutex);
    return n;
}

bool grammars_is_waiting(struct grammars *g, uint64_t request)
{
    if (g == NULL)
        return false;
    pthread_mutex_lock(&g->mutex);
    bool is_waiting = find(g, request) != NULL;
    pthread_mutex_unlock(&g->mutex);
    return is_waiting;
}

struct grammar_job *grammars_take(struct grammars *g)
{
    struct grammar_job *job = NULL;
    if (g == NULL)
        return NULL;
    pthread_mutex_lock(&g->mutex);
    if (g->first != NULL && g->first != g->current) {
        job = g->first;
        unlink_job(g, job);
    }
    pthread_mutex_unlock(&g->mutex);
    return job;
}
