/* What the API knows of a model's text between requests: its control tokens and how it writes
 * reasoning and tool calls. Counted references; immutable once made. Thread: any. */
#ifndef SHOAL_API_MODEL_TEXT_H
#define SHOAL_API_MODEL_TEXT_H

#include "api/backend.h"
#include "api/control_set.h"
#include "text/output_format.h"

struct api;

enum { MODEL_TEXT_MARKERS_MAX = 16 };

struct model_text {
    struct control_set *controls;
    const struct output_format *format;
    token_id markers[MODEL_TEXT_MARKERS_MAX]; /* control tokens that the format's parser reads */
    uint32_t n_markers;
    uint32_t n_refs; /* the loop's */
};

/* Of a model, from the api's few remembered ones or made anew. Returns a reference, NULL with the
 * error. Thread: the loop's. */
struct model_text *model_text_get(struct api *a, const struct api_model *m, struct error *err);
struct model_text *model_text_ref(struct model_text *t);
void model_text_unref(struct model_text *t);
bool model_text_is_marker(const struct model_text *t, token_id id);

#endif
