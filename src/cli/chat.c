/* `shoal chat`: a conversation in the terminal, over the streaming API of any node. */
#include "base/buf.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/http_client.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ANSWER_BYTES_MAX = 1 << 20, TEXT_BYTES_MAX = 16 << 20 };

static const struct option options[] = {
    {"api", required_argument, NULL, 'a'},
    {"model", required_argument, NULL, 'm'},
    {"system", required_argument, NULL, 's'},
    {"max-tokens", required_argument, NULL, 'n'},
    {"temperature", required_argument, NULL, 't'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

struct chat {
    const char *api, *model, *system;
    char model_found[256];
    uint32_t n_max; /* 0: the server's own limit */
    float temperature;
    bool has_temperature;
    json_t *messages;  /* the conversation so far */
    struct buf answer; /* of the assistant, being written */
    struct error err;  /* that came within the stream */
};

static void print_help(FILE *out)
{
    fprintf(out,
            "usage: shoal chat [options]\n\n"
            "Talks to a model that a cluster serves. Reads lines from the terminal; from a pipe\n"
            "reads all of it as one message.\n\n"
            "  --api URL         of any node (default http://127.0.0.1:8420)\n"
            "  --model MODEL     default: the first one that is ready\n"
            "  --system TEXT     instructions before the conversation\n"
            "  --max-tokens N    of each answer\n"
            "  --temperature T   0: always the likeliest token\n");
}

/* The cause in an error answer of the API, else all of it. */
static void read_error(struct error *err, const char *url, long status, const struct buf *answer)
{
    json_t *doc = NULL;
    const char *text = NULL;
    if (json_parse(buf_str(answer), answer->len, &doc, NULL) == 0)
        text = json_string_value(json_object_get(json_object_get(doc, "error"), "message"));
    error_set(err, E_UNAVAILABLE, "%s answered with status %ld: %s", url, status,
              text != NULL ? text : buf_str(answer));
    json_decref(doc);
}

static int find_model(struct chat *c)
{
    char url[512];
    struct buf answer;
    json_t *doc = NULL, *model;
    long status = 0;
    size_t i;
    snprintf(url, sizeof(url), "%s/v1/models", c->api);
    buf_init(&answer, ANSWER_BYTES_MAX);
    int rc = http_client_get(url, NULL, 10000, &answer, &status, &c->err);
    if (rc == 0 && status != 200) {
        read_error(&c->err, url, status, &answer);
        rc = c->err.code;
    }
    if (rc == 0)
        rc = json_parse(buf_str(&answer), answer.len, &doc, &c->err);
    json_array_foreach(json_object_get(doc, "data"), i, model)
    {
        const char *id = json_string_value(json_object_get(model, "id"));
        if (c->model == NULL && id != NULL && json_is_true(json_object_get(model, "ready"))) {
            snprintf(c->model_found, sizeof(c->model_found), "%s", id);
            c->model = c->model_found;
        }
    }
    if (rc == 0 && c->model == NULL)
        rc = error_set(&c->err, E_UNAVAILABLE, "%s serves no model that is ready", c->api);
    json_decref(doc);
    buf_done(&answer);
    return rc;
}

static bool on_line(void *arg, const char *line, size_t len)
{
    struct chat *c = arg;
    json_t *doc = NULL;
    if (len < 6 || memcmp(line, "data: ", 6) != 0)
        return true; /* empty lines and comments about progress */
    if (len == 12 && memcmp(line + 6, "[DONE]", 6) == 0)
        return false;
    if (json_parse(line + 6, len - 6, &doc, &c->err) != 0)
        return false;
    const json_t *error = json_object_get(doc, "error");
    const char *text = json_string_value(json_object_get(
        json_object_get(json_array_get(json_object_get(doc, "choices"), 0), "delta"), "content"));
    if (error != NULL) {
        const char *message = json_string_value(json_object_get(error, "message"));
        error_set(&c->err, E_UNAVAILABLE, "%s", message != NULL ? message : "the answer broke off");
    } else if (text != NULL) {
        buf_append_str(&c->answer, text);
        fputs(text, stdout);
        fflush(stdout);
    }
    json_decref(doc);
    return error == NULL;
}

static json_t *make_message(const char *role, const char *text, size_t len)
{
    json_t *content = json_stringn(text, len);
    if (content == NULL) /* not UTF-8: the API would refuse it, too */
        return NULL;
    return json_pack("{s:s, s:o}", "role", role, "content", content);
}

/* One turn: sends the conversation, prints the answer, keeps it. */
static int take_turn(struct chat *c, const char *text, size_t len)
{
    char url[512];
    struct buf refusal;
    long status = 0;
    json_t *message = make_message("user", text, len);
    if (message == NULL)
        return error_set(&c->err, E_FORMAT, "the message is not valid UTF-8");
    json_array_append_new(c->messages, message);
    json_t *request =
        json_pack("{s:s, s:O, s:b}", "model", c->model, "messages", c->messages, "stream", 1);
    if (request != NULL && c->n_max > 0)
        json_object_set_new(request, "max_tokens", json_integer(c->n_max));
    if (request != NULL && c->has_temperature)
        json_object_set_new(request, "temperature", json_real((double)c->temperature));
    char *body = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
    json_decref(request);
    if (body == NULL)
        return error_set(&c->err, E_NOMEM, "out of memory for the conversation");
    snprintf(url, sizeof(url), "%s/v1/chat/completions", c->api);
    buf_init(&refusal, ANSWER_BYTES_MAX);
    buf_reset(&c->answer);
    error_clear(&c->err);
    int rc = http_client_stream(url, body, on_line, c, &refusal, &status, &c->err);
    if (rc == 0 && status != 200)
        read_error(&c->err, url, status, &refusal);
    buf_done(&refusal);
    free(body);
    printf("\n");
    fflush(stdout);
    if (c->err.code == 0)
        json_array_append_new(c->messages,
                              make_message("assistant", buf_str(&c->answer), c->answer.len));
    else
        json_array_remove(c->messages, json_array_size(c->messages) - 1);
    return c->err.code;
}

static int talk_to_pipe(struct chat *c)
{
    struct buf text;
    char part[4096];
    size_t n;
    buf_init(&text, TEXT_BYTES_MAX);
    while ((n = fread(part, 1, sizeof(part), stdin)) > 0)
        buf_append(&text, part, n);
    int rc = text.error != 0
                 ? error_set(&c->err, E_LIMIT, "the message is over %d MiB", TEXT_BYTES_MAX >> 20)
             : text.len == 0
                 ? error_set(&c->err, E_INVALID, "there is no message on standard input")
                 : take_turn(c, buf_str(&text), text.len);
    buf_done(&text);
    return rc;
}

static int talk_to_terminal(struct chat *c)
{
    char *line = NULL;
    size_t size = 0;
    ssize_t len;
    printf("model %s; an empty line or Ctrl-D ends\n> ", c->model);
    fflush(stdout);
    while ((len = getline(&line, &size, stdin)) > 0) {
        if (line[len - 1] == '\n')
            len--;
        if (len == 0)
            break;
        /* A turn that failed is said, and the conversation goes on. */
        if (take_turn(c, line, (size_t)len) != 0)
            cli_fail(&c->err);
        printf("> ");
        fflush(stdout);
    }
    free(line);
    error_clear(&c->err);
    return 0;
}

static int parse(int argc, char **argv, struct chat *c, bool *ret_wants_help)
{
    int key, rc = 0;
    optind = 1;
    while (rc == 0 && (key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 'a')
            c->api = optarg;
        else if (key == 'm')
            c->model = optarg;
        else if (key == 's')
            c->system = optarg;
        else if (key == 'n')
            rc = cli_parse_u32("--max-tokens", optarg, 1, 1u << 24, &c->n_max, &c->err);
        else if (key == 't')
            rc = cli_parse_float("--temperature", optarg, 0, 2, &c->temperature, &c->err);
        else if (key == 'h')
            *ret_wants_help = true;
        else
            rc = error_set(&c->err, E_INVALID, "see `shoal chat --help`");
        c->has_temperature |= key == 't';
    }
    return rc;
}

int cli_chat(int argc, char **argv)
{
    struct chat c = {.api = CLI_DEFAULT_API};
    bool wants_help = false;
    int rc = parse(argc, argv, &c, &wants_help);
    if (rc == 0 && wants_help) {
        print_help(stdout);
        return 0;
    }
    if (rc != 0)
        return cli_fail(&c.err);
    buf_init(&c.answer, TEXT_BYTES_MAX);
    c.messages = json_array();
    if (c.system != NULL)
        json_array_append_new(c.messages, make_message("system", c.system, strlen(c.system)));
    rc = find_model(&c);
    if (rc == 0)
        rc = isatty(STDIN_FILENO) ? talk_to_terminal(&c) : talk_to_pipe(&c);
    json_decref(c.messages);
    buf_done(&c.answer);
    return rc == 0 ? 0 : cli_fail(&c.err);
}
