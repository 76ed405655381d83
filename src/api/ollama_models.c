/* What models there are, in Ollama's words: /api/tags, /api/ps, /api/show; and what is no model:
 * /, /api/version, and calls that are not served. */
#include "api/ollama.h"
#include "api/request_fields.h"
#include "base/clock.h"
#include "text/output_format.h"

#include <string.h>

enum { SHOW_BODY_BYTES_MAX = 65536 };

#define NS_PER_S 1000000000u
/* What stays loaded has a date far away, as in Ollama with a keep_alive below zero. */
#define KEEP_YEARS_S (100ull * 365 * 86400)

static void respond(struct http_response *r, struct buf *body)
{
    struct api_error e;
    if (body->error == 0) {
        http_respond(r, 200, "application/json", buf_str(body), body->len);
    } else {
        api_error_set(&e, 503, NULL, NULL, "%s", error_text(body->error));
        api_error_respond(r, &e);
    }
    buf_done(body);
}

void ollama_root(struct api *a, const struct http_request *q, struct http_response *r)
{
    static const char text[] = "Ollama is running"; /* clients look for these words */
    (void)a, (void)q;
    http_respond(r, 200, "text/plain; charset=utf-8", text, sizeof(text) - 1);
}

void ollama_version(struct api *a, const struct http_request *q, struct http_response *r)
{
    static const char text[] = "{\"version\":\"" OLLAMA_VERSION "\"}";
    (void)a, (void)q;
    http_respond(r, 200, "application/json", text, sizeof(text) - 1);
}

void ollama_refuse(struct api *a, const struct http_request *q, struct http_response *r)
{
    struct api_error e;
    (void)a;
    api_error_set(&e, 501, NULL, NULL, "%.64s: this server does not have it", q->path);
    api_error_respond(r, &e);
}

static void append_text(struct buf *out, const char *text)
{
    json_append_string(out, text != NULL ? text : "", text != NULL ? strlen(text) : 0);
}

/* "134.52M", "8.0B": as people say it. */
static void append_parameter_size(struct buf *out, uint64_t n)
{
    static const struct {
        double unit;
        char letter;
    } units[] = {{1e9, 'B'}, {1e6, 'M'}, {1e3, 'K'}};
    for (size_t i = 0; i < 3; i++) {
        double v = (double)n / units[i].unit;
        if (v < 1)
            continue;
        buf_printf(out, "\"%.*f%c\"", units[i].letter == 'B' ? 1 : 2, v, units[i].letter);
        return;
    }
    if (n > 0)
        buf_printf(out, "\"%llu\"", (unsigned long long)n);
    else
        buf_append_str(out, "\"\"");
}

static void append_details(struct buf *out, const struct api_model *m)
{
    buf_append_str(out, "\"details\":{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":");
    append_text(out, m->architecture);
    buf_append_str(out, ",\"families\":[");
    if (m->architecture != NULL && m->architecture[0] != '\0')
        append_text(out, m->architecture);
    buf_append_str(out, "],\"parameter_size\":");
    append_parameter_size(out, m->n_parameters);
    buf_append_str(out, ",\"quantization_level\":");
    append_text(out, m->quantization);
    buf_append_char(out, '}');
}

static void append_model(struct buf *out, const struct api_model *m)
{
    buf_append_str(out, "{\"name\":");
    ollama_append_listed_name(out, m);
    buf_append_str(out, ",\"model\":");
    ollama_append_listed_name(out, m);
    buf_printf(out, ",\"size\":%llu,\"digest\":\"%s\",", (unsigned long long)m->file_bytes,
               m->digest);
    append_details(out, m);
}

static void append_modified(struct buf *out, const struct api_model *m)
{
    buf_append_str(out, ",\"modified_at\":\"");
    ollama_append_time(out, m->created_s * NS_PER_S);
    buf_append_char(out, '"');
}

void ollama_tags(struct api *a, const struct http_request *q, struct http_response *r)
{
    const struct api_backend *b = a->backend;
    struct buf body;
    uint32_t n = b->n_models(b->self);
    (void)q;
    buf_init(&body, 16u << 20);
    buf_append_str(&body, "{\"models\":[");
    for (uint32_t i = 0; i < n; i++) {
        const struct api_model *m = b->model_at(b->self, i);
        buf_append_str(&body, i > 0 ? "," : "");
        append_model(&body, m);
        append_modified(&body, m);
        buf_append_char(&body, '}');
    }
    buf_append_str(&body, "]}");
    respond(r, &body);
}

void ollama_ps(struct api *a, const struct http_request *q, struct http_response *r)
{
    const struct api_backend *b = a->backend;
    const char *comma = "";
    struct buf body;
    uint32_t n = b->n_models(b->self);
    (void)q;
    buf_init(&body, 16u << 20);
    buf_append_str(&body, "{\"models\":[");
    for (uint32_t i = 0; i < n; i++) {
        const struct api_model *m = b->model_at(b->self, i);
        if (!m->is_ready)
            continue;
        buf_append_str(&body, comma);
        append_model(&body, m);
        buf_append_str(&body, ",\"expires_at\":\"");
        ollama_append_time(&body, clock_wall_ns() + KEEP_YEARS_S * NS_PER_S);
        buf_printf(&body, "\",\"size_vram\":%llu,\"context_length\":%u}",
                   (unsigned long long)m->gpu_bytes, m->n_ctx);
        comma = ",";
    }
    buf_append_str(&body, "]}");
    respond(r, &body);
}

/* ---- show ---- */

/* Whether the template says something about thinking: the family's mark, or a switch for it. */
static bool can_think(const char *source, size_t len)
{
    const struct output_format *f = output_format_find(source, len);
    static const char *const switches[] = {"enable_thinking", "reasoning_effort"};
    for (size_t i = 0; i < 2; i++)
        if (memmem(source, len, switches[i], strlen(switches[i])) != NULL)
            return true;
    for (size_t i = 0; i < OUTPUT_TAGS_MAX; i++)
        if (f->reasoning[i].begin != NULL &&
            memmem(source, len, f->reasoning[i].begin, strlen(f->reasoning[i].begin)) != NULL)
            return true;
    return f->is_harmony;
}

static void append_model_info(struct buf *out, const struct api_model *m)
{
    const char *architecture =
        m->architecture != NULL && m->architecture[0] != '\0' ? m->architecture : "unknown";
    struct buf key;
    buf_init(&key, 4096);
    buf_printf(&key, "%s.context_length", architecture);
    buf_append_str(out, "\"model_info\":{\"general.architecture\":");
    append_text(out, architecture);
    buf_printf(out, ",\"general.parameter_count\":%llu,", (unsigned long long)m->n_parameters);
    json_append_string(out, buf_str(&key), key.len);
    buf_printf(out, ":%u}", m->n_ctx);
    buf_done(&key);
}

static void append_show(struct buf *out, const struct api_model *m)
{
    size_t len = 0;
    const char *source =
        m->chat_template != NULL ? chat_template_source(m->chat_template, &len) : "";
    struct buf file;
    buf_init(&file, LIMIT_HTTP_URL_BYTES);
    buf_printf(&file, "FROM %s\nPARAMETER num_ctx %u\n", m->id, m->n_ctx);
    buf_append_str(out, "{\"license\":\"\",\"modelfile\":");
    json_append_string(out, buf_str(&file), file.len);
    buf_done(&file);
    buf_printf(out,
               ",\"parameters\":\"num_ctx                        %u\",\"template\":", m->n_ctx);
    json_append_string(out, source, len);
    buf_append_char(out, ',');
    append_details(out, m);
    buf_append_char(out, ',');
    append_model_info(out, m);
    buf_append_str(out, ",\"capabilities\":[\"completion\"");
    if (m->chat_template != NULL) /* templates without tools get them as text */
        buf_append_str(out, ",\"tools\"");
    if (len > 0 && can_think(source, len))
        buf_append_str(out, ",\"thinking\"");
    buf_append_char(out, ']');
    append_modified(out, m);
    buf_append_char(out, '}');
}

void ollama_show(struct api *a, const struct http_request *q, struct http_response *r)
{
    struct api_error e = {0};
    const struct api_model *m = NULL;
    const char *name = NULL;
    struct buf out;
    json_t *body = NULL;
    buf_init(&out, 64u << 20);
    if (ollama_read_body(q, SHOW_BODY_BYTES_MAX, &body, &e) == 0 &&
        ollama_read_model(body, &name, &e) == 0 && (m = ollama_find_model(a, name)) == NULL)
        api_error_set(&e, 404, "model_not_found", "model", "model '%.256s' not found", name);
    if (m != NULL)
        append_show(&out, m);
    json_decref(body);
    if (e.status != 0) {
        api_error_respond(r, &e);
        buf_done(&out);
        return;
    }
    respond(r, &out);
}
