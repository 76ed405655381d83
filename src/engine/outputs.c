/* What a step gives: logits, and hidden states for the next stage. The processors' own are read
 * where the graph left them; a device's are copied. */
#include "engine/internal.h"

#include <stdlib.h>

/* The first n rows of t, which may be NULL. */
static int fetch(struct engine_output *out, struct ggml_tensor *t, uint32_t n, struct error *err)
{
    out->rows = NULL;
    if (t == NULL || n == 0)
        return 0;
    if (ggml_backend_buffer_is_host(t->buffer)) {
        out->rows = t->data;
        return 0;
    }
    size_t bytes = n * t->nb[1];
    if (bytes > out->copy_bytes) {
        free(out->copy);
        out->copy_bytes = 0;
        out->copy = malloc(bytes);
        if (out->copy == NULL)
            return error_set(err, E_NOMEM, "no memory for %u rows that the device computed", n);
        out->copy_bytes = bytes;
    }
    ggml_backend_tensor_get(t, out->copy, 0, bytes);
    out->rows = out->copy;
    return 0;
}

int engine_fetch_outputs(struct engine *e, struct error *err)
{
    const struct graph *g = &e->graph;
    int rc = fetch(&e->logits, g->logits, g->shape.n_outputs, err);
    return rc == 0 ? fetch(&e->hidden_out, g->hidden_out, g->shape.n_tokens, err) : rc;
}

const float *engine_logits(const struct engine *e, uint32_t row, struct range *ret_vocab)
{
    if (ret_vocab != NULL)
        *ret_vocab = e->shard.vocab;
    if (e->logits.rows == NULL || e->graph.logits == NULL || row >= e->graph.shape.n_outputs)
        return NULL;
    return e->logits.rows + (size_t)row * (size_t)e->graph.logits->ne[0];
}
