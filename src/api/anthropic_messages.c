/* System prompt and messages as Anthropic has them, into the form of templates. */
#include "api/anthropic.h"
#include "api/openai.h"
#include "api/request_fields.h"

#include <string.h>
#include <strings.h>

enum turn_role { TURN_NONE, TURN_SYSTEM, TURN_USER, TURN_ASSISTANT };

struct turn { /* being collected: what follows may belong to it */
    struct chat_request *request;
    struct api_error *e;
    enum turn_role role;
    bool has_text, wants_break;
    struct buf text, thinking;
    json_t *calls; /* owned; NULL when none */
    json_t *names; /* owned: of tools by the ids of their calls */
};

static int refuse_memory(struct turn *t)
{
    return api_error_set(t->e, 503, NULL, NULL, "out of memory");
}

/* ---- turns ---- */

static json_t *take_text(struct buf *b)
{
    json_t *text = b->error == 0 ? json_stringn(buf_str(b), b->len) : NULL;
    buf_reset(b);
    return text;
}

/* The turn is complete: it becomes a message. */
static int end_turn(struct turn *t)
{
    static const char *const names[] = {"", "system", "user", "assistant"};
    enum turn_role role = t->role;
    json_t *calls = t->calls;
    bool has_thinking = t->thinking.len > 0;
    bool is_empty = role == TURN_NONE || (role == TURN_SYSTEM && t->text.len == 0) ||
                    (!t->has_text && calls == NULL && !has_thinking);
    json_t *content = t->has_text ? take_text(&t->text) : json_null();
    t->role = TURN_NONE;
    t->has_text = t->wants_break = false;
    t->calls = NULL;
    if (is_empty) {
        buf_reset(&t->text);
        json_decref(content);
        json_decref(calls);
        return 0;
    }
    if (content == NULL) {
        json_decref(calls);
        return refuse_memory(t);
    }
    json_t *message = chat_request_add_message(t->request, names[role], content, t->e);
    if (message == NULL) {
        json_decref(calls);
        return -1;
    }
    if (calls != NULL && json_object_set_new(message, "tool_calls", calls) != 0)
        return refuse_memory(t);
    if (has_thinking &&
        json_object_set_new(message, "reasoning_content", take_text(&t->thinking)) != 0)
        return refuse_memory(t);
    return 0;
}

static int begin_turn(struct turn *t, enum turn_role role)
{
    if (t->role != role && end_turn(t) != 0)
        return -1;
    t->role = role;
    return 0;
}

static int add_text(struct turn *t, enum turn_role role, const char *text, size_t len)
{
    if (begin_turn(t, role) != 0)
        return -1;
    if (t->has_text && t->wants_break && t->text.len > 0 && len > 0)
        buf_append_str(&t->text, "\n\n");
    /* An assistant's blocks were one text when they were written; all others are paragraphs. */
    t->wants_break = role != TURN_ASSISTANT;
    t->has_text = true;
    return buf_append(&t->text, text, len) == 0 ? 0 : refuse_memory(t);
}

/* ---- the system prompt ---- */

/* Lines that clients put before the system prompt and change with each request: after them nothing
 * of a prompt could be found in the cache again. */
static const char *const volatile_lines[] = {
    "x-anthropic-billing-header:", /* Claude Code: version and a checksum */
};

/* The length of the volatile lines that the text begins with. */
static size_t volatile_bytes(const char *text)
{
    size_t done = 0;
    for (size_t i = 0; i < sizeof(volatile_lines) / sizeof(volatile_lines[0]);) {
        if (strncasecmp(text + done, volatile_lines[i], strlen(volatile_lines[i])) != 0) {
            i++;
            continue;
        }
        done += strcspn(text + done, "\n");
        done += strspn(text + done, "\n");
        i = 0;
    }
    return done;
}

static int add_system(struct turn *t, const json_t *text)
{
    const char *from = json_string_value(text);
    size_t dropped = t->text.len == 0 ? volatile_bytes(from) : 0;
    return add_text(t, TURN_SYSTEM, from + dropped, json_string_length(text) - dropped);
}

/* ---- blocks ---- */

static int refuse_block(struct turn *t, const char *type, const char *path)
{
    static const char *const media[] = {"image", "document", "search_result", "container_upload"};
    for (size_t i = 0; i < sizeof(media) / sizeof(media[0]); i++)
        if (strcmp(type, media[i]) == 0)
            return api_error_set(t->e, 400, "unsupported_value", path,
                                 "%s: blocks of type '%s' are not supported: this server's models "
                                 "take text only.",
                                 path, type);
    if (strstr(type, "tool") != NULL)
        return api_error_set(t->e, 400, "unsupported_value", path,
                             "%s: blocks of type '%.64s' cannot be here: 'tool_use' belongs to "
                             "the assistant, 'tool_result' to the user, and this server runs no "
                             "tools itself.",
                             path, type);
    return api_error_set(t->e, 400, "unsupported_value", path,
                         "%s: blocks of type '%.64s' are not supported here.", path, type);
}

/* The block's type, NULL with the error. */
static const char *block_type(struct turn *t, const json_t *block, const char *path)
{
    char at[FIELD_PATH_BYTES];
    const char *type = NULL;
    if (!json_is_object(block)) {
        field_refuse_type(t->e, path, "an object", block);
        return NULL;
    }
    snprintf(at, sizeof(at), "%.80s.type", path);
    if (field_string(t->e, block, "type", at, &type) != 0)
        return NULL;
    if (type == NULL)
        field_refuse_missing(t->e, at);
    return type;
}

/* A string of the block, NULL with the error. Text may have NUL. */
static const json_t *block_text(struct turn *t, const json_t *block, const char *name,
                                const char *path)
{
    char at[FIELD_PATH_BYTES];
    const json_t *text = field_get(block, name);
    snprintf(at, sizeof(at), "%.80s.%s", path, name);
    if (text == NULL)
        field_refuse_missing(t->e, at);
    else if (!json_is_string(text))
        field_refuse_type(t->e, at, "a string", text);
    return json_is_string(text) ? text : NULL;
}

/* Appends a string or the text of text blocks. */
static int append_content(struct turn *t, const json_t *content, const char *path, struct buf *out)
{
    char at[FIELD_PATH_BYTES];
    const json_t *block;
    size_t i;
    if (content == NULL)
        return 0;
    if (json_is_string(content))
        return buf_append(out, json_string_value(content), json_string_length(content)) == 0
                   ? 0
                   : refuse_memory(t);
    if (!json_is_array(content))
        return field_refuse_type(t->e, path, "a string or an array of blocks", content);
    json_array_foreach(content, i, block)
    {
        snprintf(at, sizeof(at), "%.64s.%zu", path, i);
        const char *type = block_type(t, block, at);
        if (type == NULL)
            return -1;
        if (strcmp(type, "text") != 0)
            return refuse_block(t, type, at);
        const json_t *text = block_text(t, block, "text", at);
        if (text == NULL)
            return -1;
        if (i > 0)
            buf_append_str(out, "\n\n");
        if (buf_append(out, json_string_value(text), json_string_length(text)) != 0)
            return refuse_memory(t);
    }
    return 0;
}

static int add_tool_result(struct turn *t, const json_t *block, const char *path)
{
    char at[FIELD_PATH_BYTES];
    const char *id = NULL;
    bool is_error = false;
    struct buf text;
    snprintf(at, sizeof(at), "%.80s.is_error", path);
    if (field_bool(t->e, block, "is_error", at, &is_error) != 0)
        return -1;
    snprintf(at, sizeof(at), "%.80s.tool_use_id", path);
    if (field_string(t->e, block, "tool_use_id", at, &id) != 0)
        return -1;
    if (id == NULL)
        return field_refuse_missing(t->e, at);
    if (end_turn(t) != 0)
        return -1;
    buf_init(&text, 2u * LIMIT_HTTP_BODY_BYTES);
    if (is_error) /* templates have no field for it */
        buf_append_str(&text, "Error: ");
    snprintf(at, sizeof(at), "%.80s.content", path);
    int rc = append_content(t, field_get(block, "content"), at, &text);
    json_t *content = rc == 0 ? take_text(&text) : NULL;
    buf_done(&text);
    if (content == NULL)
        return rc != 0 ? rc : refuse_memory(t);
    json_t *message = chat_request_add_message(t->request, "tool", content, t->e);
    if (message == NULL)
        return -1;
    json_t *name = json_object_get(t->names, id);
    if (json_object_set(message, "tool_call_id", json_object_get(block, "tool_use_id")) != 0 ||
        (name != NULL && json_object_set(message, "name", name) != 0))
        return refuse_memory(t);
    return 0;
}

static int add_tool_use(struct turn *t, const json_t *block, const char *path)
{
    char at[FIELD_PATH_BYTES];
    const char *id = NULL, *name = NULL;
    json_t *input;
    snprintf(at, sizeof(at), "%.80s.id", path);
    if (field_string(t->e, block, "id", at, &id) != 0)
        return -1;
    if (id == NULL)
        return field_refuse_missing(t->e, at);
    snprintf(at, sizeof(at), "%.80s.name", path);
    if (field_string(t->e, block, "name", at, &name) != 0)
        return -1;
    if (name == NULL)
        return field_refuse_missing(t->e, at);
    snprintf(at, sizeof(at), "%.80s.input", path);
    if (field_object(t->e, block, "input", at, &input) != 0)
        return -1;
    if (input == NULL)
        return field_refuse_missing(t->e, at);
    if (begin_turn(t, TURN_ASSISTANT) != 0)
        return -1;
    if (t->calls == NULL && (t->calls = json_array()) == NULL)
        return refuse_memory(t);
    json_t *call = openai_tool_call(id, name, input);
    if (call == NULL || json_array_append_new(t->calls, call) != 0 ||
        json_object_set(t->names, id, json_object_get(block, "name")) != 0)
        return refuse_memory(t);
    return 0;
}

static int add_thinking(struct turn *t, const json_t *block, const char *path)
{
    const json_t *text = block_text(t, block, "thinking", path);
    if (text == NULL)
        return -1;
    if (json_string_length(text) == 0) /* it was omitted from the answer */
        return 0;
    if (begin_turn(t, TURN_ASSISTANT) != 0)
        return -1;
    if (t->thinking.len > 0)
        buf_append_str(&t->thinking, "\n\n");
    return buf_append(&t->thinking, json_string_value(text), json_string_length(text)) == 0
               ? 0
               : refuse_memory(t);
}

static int add_block(struct turn *t, enum turn_role role, const json_t *block, const char *path)
{
    const char *type = block_type(t, block, path);
    if (type == NULL)
        return -1;
    if (strcmp(type, "text") == 0) {
        const json_t *text = block_text(t, block, "text", path);
        if (text == NULL)
            return -1;
        return role == TURN_SYSTEM
                   ? add_system(t, text)
                   : add_text(t, role, json_string_value(text), json_string_length(text));
    }
    if (role == TURN_USER && strcmp(type, "tool_result") == 0)
        return add_tool_result(t, block, path);
    if (role == TURN_ASSISTANT && strcmp(type, "tool_use") == 0)
        return add_tool_use(t, block, path);
    if (role == TURN_ASSISTANT && strcmp(type, "thinking") == 0)
        return add_thinking(t, block, path);
    if (role == TURN_ASSISTANT && strcmp(type, "redacted_thinking") == 0)
        return 0; /* nobody but its writer can read it */
    return refuse_block(t, type, path);
}

static int add_blocks(struct turn *t, enum turn_role role, const json_t *content, const char *path)
{
    char at[FIELD_PATH_BYTES];
    const json_t *block;
    size_t i;
    if (json_is_string(content))
        return role == TURN_SYSTEM
                   ? add_system(t, content)
                   : add_text(t, role, json_string_value(content), json_string_length(content));
    if (!json_is_array(content))
        return field_refuse_type(t->e, path, "a string or an array of blocks", content);
    json_array_foreach(content, i, block)
    {
        snprintf(at, sizeof(at), "%.64s.%zu", path, i);
        if (add_block(t, role, block, at) != 0)
            return -1;
    }
    return 0;
}

/* ---- messages ---- */

/* A system message after the first turn. Few templates take one there, and none forbids that the
 * user's text has a marked part. */
static int add_late_system(struct turn *t, const json_t *content, const char *path)
{
    struct buf text;
    buf_init(&text, 2u * LIMIT_HTTP_BODY_BYTES);
    buf_append_str(&text, "<system>\n");
    int rc = append_content(t, content, path, &text);
    buf_append_str(&text, "\n</system>");
    if (rc == 0)
        rc = text.error == 0 ? add_text(t, TURN_USER, buf_str(&text), text.len) : refuse_memory(t);
    buf_done(&text);
    return rc;
}

static int read_message(struct turn *t, const json_t *message, size_t index)
{
    char path[FIELD_PATH_BYTES];
    const char *role = NULL;
    snprintf(path, sizeof(path), "messages.%zu", index);
    if (!json_is_object(message))
        return field_refuse_type(t->e, path, "an object", message);
    snprintf(path, sizeof(path), "messages.%zu.role", index);
    if (field_string(t->e, message, "role", path, &role) != 0)
        return -1;
    if (role == NULL)
        return field_refuse_missing(t->e, path);
    bool is_system = strcmp(role, "system") == 0, is_user = strcmp(role, "user") == 0;
    if (!is_system && !is_user && strcmp(role, "assistant") != 0)
        return field_refuse_value(t->e, path, "'user', 'assistant' or 'system'.");
    snprintf(path, sizeof(path), "messages.%zu.content", index);
    const json_t *content = field_get(message, "content");
    if (content == NULL)
        return field_refuse_missing(t->e, path);
    t->wants_break = true;
    bool is_first = t->request->messages == NULL && t->role <= TURN_SYSTEM;
    if (is_system && !is_first)
        return add_late_system(t, content, path);
    return add_blocks(t,
                      is_system ? TURN_SYSTEM
                      : is_user ? TURN_USER
                                : TURN_ASSISTANT,
                      content, path);
}

static int read_all(struct turn *t, const json_t *system, const json_t *list)
{
    const json_t *message;
    size_t i;
    if (system != NULL && add_blocks(t, TURN_SYSTEM, system, "system") != 0)
        return -1;
    json_array_foreach(list, i, message) if (read_message(t, message, i) != 0) return -1;
    if (end_turn(t) != 0)
        return -1;
    const json_t *last = t->request->messages;
    last = json_array_get(last, json_array_size(last) - 1);
    if (last == NULL || strcmp(json_string_value(json_object_get(last, "role")), "system") == 0)
        return field_refuse_value(t->e, "messages", "at least one message with content is needed.");
    return 0;
}

int anthropic_read_messages(struct chat_request *r, struct api_error *e)
{
    json_t *list;
    if (field_array(e, r->body, "messages", NULL, &list) != 0)
        return -1;
    if (list == NULL)
        return field_refuse_missing(e, "messages");
    if (json_array_size(list) == 0 || json_array_size(list) > CHAT_MESSAGES_MAX)
        return field_refuse_value(e, "messages", "1 to 65536 messages.");
    struct turn t = {.request = r, .e = e, .names = json_object()};
    buf_init(&t.text, 2u * LIMIT_HTTP_BODY_BYTES);
    buf_init(&t.thinking, 2u * LIMIT_HTTP_BODY_BYTES);
    int rc = t.names != NULL ? read_all(&t, field_get(r->body, "system"), list) : refuse_memory(&t);
    buf_done(&t.text);
    buf_done(&t.thinking);
    json_decref(t.calls);
    json_decref(t.names);
    return rc;
}
