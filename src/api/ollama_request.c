/* The bodies of POST /api/chat and POST /api/generate. */
#include "api/ollama.h"
#include "api/openai.h"
#include "api/request_fields.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int refuse_memory(struct api_error *e)
{
    return api_error_set(e, 503, NULL, NULL, "out of memory");
}

int ollama_read_body(const struct http_request *q, size_t n_max, json_t **ret_body,
                     struct api_error *e)
{
    struct error err;
    json_t *body;
    if (q->body_len > n_max)
        return api_error_set(e, 413, NULL, NULL, "the body has %zu bytes; at most %zu are possible",
                             q->body_len, n_max);
    if (q->body_len == 0)
        return api_error_set(e, 400, NULL, NULL, "missing request body");
    if (json_parse(q->body, q->body_len, &body, &err) != 0)
        return api_error_set(e, err.code == E_NOMEM ? 503 : 400, "invalid_json", NULL,
                             "the body of the request is not JSON: %s", err.message);
    if (!json_is_object(body)) {
        api_error_set(e, 400, "invalid_type", NULL,
                      "the body of the request must be a JSON object, but is %s", field_kind(body));
        json_decref(body);
        return -1;
    }
    *ret_body = body;
    return 0;
}

int ollama_read_model(const json_t *body, const char **ret_model, struct api_error *e)
{
    const char *name = NULL;
    if (field_string(e, body, "name", NULL, &name) != 0 ||
        field_string(e, body, "model", NULL, &name) != 0)
        return -1;
    if (name == NULL || name[0] == '\0')
        return api_error_set(e, 400, "missing_required_parameter", "model", "model is required");
    *ret_model = name;
    return 0;
}

/* Numbers with units, as Go writes durations: "1h30m", "-1m", "250ms"; a bare number means seconds,
 * which Go refuses but people write. Returns false when it is none. */
static bool parse_duration(const char *text, double *ret_s)
{
    static const struct {
        const char *name;
        double s;
    } units[] = {{"ns", 1e-9}, {"us", 1e-6}, {"\xc2\xb5s", 1e-6}, {"ms", 1e-3},
                 {"s", 1},     {"m", 60},    {"h", 3600}};
    const char *at = text + (*text == '-' || *text == '+');
    double sum = 0;
    bool has_unit = true;
    if (*at == '\0')
        return false;
    while (*at != '\0' && has_unit) {
        char *end;
        size_t i = 0, n = sizeof(units) / sizeof(units[0]);
        if (strspn(at, "0123456789.") == 0) /* strtod reads more than Go: "inf", "0x1p3" */
            return false;
        double v = strtod(at, &end);
        if (end == at || (size_t)(end - at) > strspn(at, "0123456789."))
            return false;
        for (i = 0; i < n; i++) /* "m" comes after "ms" */
            if (strncmp(end, units[i].name, strlen(units[i].name)) == 0)
                break;
        has_unit = i < n;
        if (!has_unit && (*end != '\0' || at > text + 1))
            return false;
        sum += v * (has_unit ? units[i].s : 1);
        at = end + (has_unit ? strlen(units[i].name) : 0);
    }
    if (!isfinite(sum))
        return false;
    *ret_s = *text == '-' ? -sum : sum;
    return true;
}

int ollama_read_duration(const json_t *value, const char *path, double *ret_s, struct api_error *e)
{
    if (value == NULL)
        return 0;
    if (json_is_number(value)) {
        *ret_s = json_number_value(value);
        return 0;
    }
    if (!json_is_string(value))
        return field_refuse_type(e, path, "a number or a string", value);
    if (strlen(json_string_value(value)) == json_string_length(value) &&
        parse_duration(json_string_value(value), ret_s))
        return 0;
    return field_refuse_value(e, path, "seconds, or a duration such as '5m' or '1h30m'.");
}

/* ---- options ---- */

/* Ollama takes 10.0 for an integer: many languages write it so. */
static int round_integers(json_t *options, struct api_error *e)
{
    static const char *const names[] = {"num_predict", "num_ctx",  "seed",
                                        "top_k",       "mirostat", "repeat_last_n"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const json_t *v = json_object_get(options, names[i]);
        double x = json_real_value(v); /* 0 if it is no real */
        if (!json_is_real(v) || x != trunc(x) || fabs(x) > 9007199254740992.0)
            continue;
        if (json_object_set_new(options, names[i], json_integer((json_int_t)x)) != 0)
            return refuse_memory(e);
    }
    return 0;
}

/* Ways of sampling that this engine does not have; the values that switch them off are fine. */
static int refuse_samplers(const json_t *options, struct api_error *e)
{
    json_int_t mirostat = 0;
    float typical_p = 1;
    if (field_integer(e, options, "mirostat", "options.mirostat", INT64_MIN, INT64_MAX,
                      &mirostat) != 0 ||
        field_number(e, options, "typical_p", "options.typical_p", 0, 1, &typical_p) != 0)
        return -1;
    if (mirostat != 0)
        return field_refuse_feature(e, "options.mirostat", "this server does not have it.");
    if (typical_p > 0 && typical_p < 1)
        return field_refuse_feature(e, "options.typical_p", "this server does not have it.");
    return 0;
}

static int read_penalties(struct chat_request *r, const json_t *options, struct api_error *e)
{
    json_int_t last_n = 64;
    if (field_integer(e, options, "repeat_last_n", "options.repeat_last_n", -1, INT32_MAX,
                      &last_n) != 0)
        return -1;
    if (last_n == 0) { /* nothing is looked back at */
        r->sampling.repetition_penalty = 1;
        r->sampling.presence_penalty = r->sampling.frequency_penalty = 0;
    }
    return 0;
}

static int read_options(struct chat_request *r, struct api_error *e)
{
    struct sampling *s = &r->sampling;
    json_t *options;
    json_int_t n_predict = -1, n_ctx = 0;
    /* Ollama's defaults but one, its repeat_penalty of 1.1 over 64 tokens: the engine's looks at
     * the whole sequence, and would punish what a long answer cannot do without. */
    s->temperature = 0.8f;
    s->top_k = 40;
    s->top_p = 0.9f;
    if (field_object(e, r->body, "options", NULL, &options) != 0)
        return -1;
    if (options == NULL)
        return 0;
    if (round_integers(options, e) != 0 ||
        chat_request_read_sampling(r, options, "options.", 100, e) != 0 ||
        read_penalties(r, options, e) != 0 || refuse_samplers(options, e) != 0 ||
        chat_request_read_stop(r, json_object_get(options, "stop"), "options.stop", e) != 0 ||
        field_integer(e, options, "num_predict", "options.num_predict", -2, UINT32_MAX,
                      &n_predict) != 0 ||
        field_integer(e, options, "num_ctx", "options.num_ctx", 0, INT32_MAX, &n_ctx) != 0)
        return -1;
    /* -1 (no bound), -2 (until the context is full) and 0 are the same here. */
    r->n_tokens_max = n_predict > 0 ? (uint32_t)n_predict : 0;
    /* num_ctx: the context was chosen when the model was placed. */
    const json_t *seed = field_get(options, "seed");
    if (seed != NULL && json_integer_value(seed) == -1)
        r->has_seed = false; /* as the dice fall */
    return 0;
}

/* ---- fields that both have ---- */

/* null, "", "json" or a schema. */
static int read_format(struct chat_request *r, struct api_error *e)
{
    const json_t *format = field_get(r->body, "format");
    const char *word = json_string_value(format);
    if (format == NULL || (word != NULL && word[0] == '\0'))
        return 0;
    if (word != NULL && strcmp(word, "json") == 0)
        return chat_request_set_schema(r, NULL, NULL, e);
    if (json_is_object(format))
        return chat_request_set_schema(r, format, "format", e);
    return field_refuse_value(e, "format", "expected \"json\" or a JSON schema.");
}

static int read_think(struct chat_request *r, struct api_error *e)
{
    static const char *const levels[] = {"low", "medium", "high", "max"};
    const json_t *think = field_get(r->body, "think");
    const char *word = json_string_value(think);
    if (think == NULL)
        return 0;
    if (json_is_boolean(think)) {
        r->thinking = json_is_true(think) ? CHAT_THINKING_ON : CHAT_THINKING_OFF;
        return 0;
    }
    for (size_t i = 0; word != NULL && i < sizeof(levels) / sizeof(levels[0]); i++) {
        if (strcmp(word, levels[i]) != 0)
            continue;
        r->thinking = CHAT_THINKING_ON;
        r->effort = levels[i];
        return 0;
    }
    return field_refuse_value(e, "think", "true, false, \"low\", \"medium\", \"high\" or \"max\".");
}

static int read_logprobs(struct chat_request *r, struct api_error *e)
{
    json_int_t n_top = 0;
    if (field_bool(e, r->body, "logprobs", NULL, &r->wants_logprobs) != 0 ||
        field_integer(e, r->body, "top_logprobs", NULL, 0, CHAT_TOP_LOGPROBS_MAX, &n_top) != 0)
        return -1;
    r->n_top_logprobs = r->wants_logprobs ? (uint32_t)n_top : 0;
    return 0;
}

static int read_common(struct chat_request *r, struct api_error *e)
{
    double keep_alive_s = 0;
    r->stream = true;
    if (ollama_read_model(r->body, &r->model, e) != 0 ||
        field_bool(e, r->body, "stream", NULL, &r->stream) != 0 ||
        ollama_read_duration(field_get(r->body, "keep_alive"), "keep_alive", &keep_alive_s, e) != 0)
        return -1;
    return read_options(r, e) != 0 || read_format(r, e) != 0 || read_think(r, e) != 0 ||
                   read_logprobs(r, e) != 0
               ? -1
               : 0;
}

int ollama_chat_parse(struct chat_request *r, struct api_error *e)
{
    json_t *messages;
    if (read_common(r, e) != 0 || field_array(e, r->body, "messages", NULL, &messages) != 0)
        return -1;
    r->is_load = json_array_size(messages) == 0;
    if (!r->is_load && openai_read_messages(r, e) != 0)
        return -1;
    return openai_read_tools(r, e) != 0 ? -1 : chat_request_check(r, e);
}

/* ---- generate ---- */

static bool has_text(const char *text)
{
    return text != NULL && text[0] != '\0';
}

/* What changes the answer and cannot be done. */
static int refuse_features(const struct chat_request *r, struct api_error *e)
{
    const char *suffix = NULL, *template = NULL;
    json_t *images;
    if (field_string(e, r->body, "suffix", NULL, &suffix) != 0 ||
        field_string(e, r->body, "template", NULL, &template) != 0 ||
        field_array(e, r->body, "images", NULL, &images) != 0)
        return -1;
    if (has_text(suffix))
        return field_refuse_feature(e, "suffix", "no model here fills in the middle of a text.");
    if (has_text(template))
        return field_refuse_feature(e, "template",
                                    "models use their own; 'raw' sends a prompt as it is.");
    if (json_array_size(images) > 0)
        return field_refuse_feature(e, "images", "this model takes text only.");
    return 0;
}

static int set_prompt(struct chat_request *r, const char *text, bool has_controls,
                      struct api_error *e)
{
    r->prompts = calloc(1, sizeof(*r->prompts));
    if (r->prompts == NULL)
        return refuse_memory(e);
    r->prompts[0] =
        (struct chat_prompt){.text = text, .len = strlen(text), .has_controls = has_controls};
    return 0;
}

static int add_message(struct chat_request *r, const char *role, const char *text,
                       struct api_error *e)
{
    return chat_request_add_message(r, role, json_string(text), e) != NULL ? 0 : -1;
}

int ollama_generate_parse(struct chat_request *r, struct api_error *e)
{
    const char *prompt = NULL, *system = NULL;
    json_t *context;
    bool is_raw = false;
    if (read_common(r, e) != 0 || refuse_features(r, e) != 0 ||
        field_string(e, r->body, "prompt", NULL, &prompt) != 0 ||
        field_string(e, r->body, "system", NULL, &system) != 0 ||
        field_bool(e, r->body, "raw", NULL, &is_raw) != 0 ||
        field_array(e, r->body, "context", NULL, &context) != 0)
        return -1;
    if (is_raw && (has_text(system) || json_array_size(context) > 0))
        return api_error_set(e, 400, "invalid_value", "raw",
                             "raw mode does not support template, system, or context");
    if (!has_text(prompt)) {
        r->is_load = true;
        return 0;
    }
    if (is_raw)
        return set_prompt(r, prompt, true, e);
    r->context = json_array_size(context) > 0 ? context : NULL;
    r->keeps_tokens = true;
    if (has_text(system) && add_message(r, "system", system, e) != 0)
        return -1;
    /* A model without a template continues the text, if that is all there is. */
    if (!has_text(system) && set_prompt(r, prompt, false, e) != 0)
        return -1;
    return add_message(r, "user", prompt, e);
}
