#include "api/model_text.h"

#include "api/api_internal.h"

#include <stdlib.h>
#include <string.h>

struct model_text *model_text_ref(struct model_text *t)
{
    t->n_refs++;
    return t;
}

void model_text_unref(struct model_text *t)
{
    if (t == NULL || --t->n_refs > 0)
        return;
    control_set_unref(t->controls);
    free(t);
}

bool model_text_is_marker(const struct model_text *t, token_id id)
{
    for (uint32_t i = 0; i < t->n_markers; i++)
        if (t->markers[i] == id)
            return true;
    return false;
}

static struct model_text *make(const struct api_model *m, struct error *err)
{
    struct model_text *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        error_set(err, E_NOMEM, "out of memory for a model's control tokens");
        return NULL;
    }
    t->n_refs = 1;
    if (control_set_new(m->tokenizer, &t->controls, err) != 0) {
        free(t);
        return NULL;
    }
    size_t len = 0;
    const char *source =
        m->chat_template != NULL ? chat_template_source(m->chat_template, &len) : "";
    t->format = output_format_find(source, len);
    const char *marker;
    for (uint32_t i = 0; (marker = output_format_marker(t->format, i)) != NULL; i++) {
        token_id id = tokenizer_find(m->tokenizer, marker, strlen(marker));
        if (id >= 0 && t->n_markers < MODEL_TEXT_MARKERS_MAX)
            t->markers[t->n_markers++] = id;
    }
    return t;
}

struct model_text *model_text_get(struct api *a, const struct api_model *m, struct error *err)
{
    uint32_t n_vocab = tokenizer_n_vocab(m->tokenizer);
    for (size_t i = 0; i < LIMIT_INSTANCES; i++) {
        struct known_text *k = &a->texts[i];
        if (k->text != NULL && k->tokenizer == m->tokenizer && k->n_vocab == n_vocab &&
            k->created_s == m->created_s && strcmp(k->model_id, m->id) == 0)
            return model_text_ref(k->text);
    }
    struct model_text *text = make(m, err);
    char *id = text != NULL ? strdup(m->id) : NULL;
    if (id == NULL) /* it works without remembering */
        return text;
    struct known_text *k = &a->texts[a->texts_next++ % LIMIT_INSTANCES];
    model_text_unref(k->text);
    free(k->model_id);
    *k = (struct known_text){id, m->created_s, m->tokenizer, n_vocab, text};
    return model_text_ref(text);
}
