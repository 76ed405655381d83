/*
 * `shoal plan`, `load`, `unload`, `drain`, `undrain`, `invite`, `join`, `requests`, `approve`,
 * `deny`, `revoke`: orders to the cluster that a node's API belongs to. Each is a row of the table:
 * what it takes, and what it says when it is done.
 */
#include "cli/orders.h"

#include "base/limits.h"
#include "cli/cli.h"
#include "cli/http_client.h"
#include "cli/instance_options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { ANSWER_BYTES_MAX = 16 << 20, BODY_BYTES_MAX = 65536, TIMEOUT_MS = 120000 };
enum { VALID_S_MAX = 7 * 86400 };

static void print_done(const json_t *answer);
static void print_invite(const json_t *answer);
static void print_requests(const json_t *answer);

struct order_verb {
    const char *name;
    const char *argument, *key; /* its name in the help, and in the body; NULL: takes none */
    bool is_placing;            /* takes options of models */
    bool is_timed;              /* takes --valid */
    void (*print)(const json_t *answer);
    const char *done; /* said when there is nothing else to say */
    const char *help;
};

static const struct order_verb order_verbs[] = {
    {"plan", "MODEL", "model", true, false, plan_print, NULL,
     "Shows where the cluster would run a model, how fast, and why not elsewhere. Changes "
     "nothing."},
    {"load", "MODEL", "model", true, false, print_done,
     "The cluster loads it; `shoal status` shows when it serves.",
     "Runs a model on the cluster: a file, or the name of one in the folder of models."},
    {"unload", "MODEL", "model", false, false, print_done, "The cluster ends it.",
     "Ends a model on the whole cluster."},
    {"drain", "NODE", "node", false, false, print_done,
     "What it holds moves to other nodes; running requests go on.",
     "Takes all models from a node (name or id), and gives it no more."},
    {"undrain", "NODE", "node", false, false, print_done, "It takes part again.",
     "Lets a drained node (name or id) take part again."},
    {"invite", NULL, NULL, false, true, print_invite, NULL,
     "Prints a line that lets one more machine join, once."},
    {"join", "LINE", "invite", false, false, print_done, "This node has joined.",
     "Joins the cluster that printed the line with `shoal invite`."},
    {"requests", NULL, NULL, false, false, print_requests, NULL,
     "Lists machines that ask to join. Both sides must show the same code."},
    {"approve", "CODE", "code", false, false, print_done, "Approved.",
     "Lets the machine with this code join."},
    {"deny", "CODE", "code", false, false, print_done, "Denied.",
     "Refuses the machine with this code."},
    {"revoke", "NODE", "node", false, false, print_done,
     "It is no member any more, and cannot come back without a new invite.",
     "Throws a node (name or id) out of the cluster."},
};
enum { N_ORDER_VERBS = sizeof(order_verbs) / sizeof(order_verbs[0]) };

struct order {
    const struct order_verb *verb;
    const char *api, *argument, *split, *placement;
    struct instance_options options;
    uint32_t n_nodes_min, valid_s;
    bool as_json;
};

/* ---- options ---- */

static const struct option options[] = {
    {"api", required_argument, NULL, 'a'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    INSTANCE_OPTIONS,
    {"split", required_argument, NULL, 'S'},
    {"placement", required_argument, NULL, 'p'},
    {"nodes", required_argument, NULL, 'n'},
    {"valid", required_argument, NULL, 'v'},
    {NULL, 0, NULL, 0},
};

static void print_help(const struct order *o, FILE *out)
{
    const struct order_verb *v = o->verb;
    fprintf(out, "usage: shoal %s%s%s [options]\n\n%s\n\n", v->name, v->argument != NULL ? " " : "",
            v->argument != NULL ? v->argument : "", v->help);
    if (v->is_placing)
        fprintf(out, INSTANCE_OPTIONS_HELP
                "  --split HOW        pipeline, tensor, or SxT: S stages of T nodes\n"
                "  --placement RULE   speed or memory\n"
                "  --nodes N          nodes to wait for before the first placement\n");
    if (v->is_timed)
        fprintf(out, "  --valid SECONDS    how long the line can be used (3600)\n");
    fprintf(out,
            "  --api URL          a node of the cluster (%s)\n"
            "  --json             the answer as JSON\n",
            o->api);
}

static int take_option(struct order *o, int key, struct error *err)
{
    const struct order_verb *v = o->verb;
    if (key == 'a')
        o->api = optarg;
    else if (key == 'j')
        o->as_json = true;
    else if (key == 'v' && v->is_timed)
        return cli_parse_u32("--valid", optarg, 1, VALID_S_MAX, &o->valid_s, err);
    else if (key >= INSTANCE_OPTION_FIRST && v->is_placing)
        return instance_option_take(&o->options, (enum instance_option)key, optarg, err);
    else if (key == 'n' && v->is_placing)
        return cli_parse_u32("--nodes", optarg, 1, LIMIT_PEERS + 1, &o->n_nodes_min, err);
    else if (key == 'S' && v->is_placing)
        o->split = optarg;
    else if (key == 'p' && v->is_placing)
        o->placement = optarg;
    else
        return error_set(err, E_INVALID, "try `shoal %s --help`", v->name);
    return 0;
}

/* Returns 1 when the help was wanted and printed. */
static int parse_options(struct order *o, int argc, char **argv, struct error *err)
{
    int key;
    optind = 1;
    while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 'h') {
            print_help(o, stdout);
            return 1;
        }
        int rc = take_option(o, key, err);
        if (rc != 0)
            return rc;
    }
    int n_wanted = o->verb->argument != NULL ? 1 : 0;
    if (argc - optind != n_wanted)
        return error_set(err, E_INVALID, "%s takes %s%s, not %d arguments: try `shoal %s --help`",
                         o->verb->name, n_wanted > 0 ? "one " : "no argument",
                         n_wanted > 0 ? o->verb->argument : "", argc - optind, o->verb->name);
    o->argument = n_wanted > 0 ? argv[optind] : NULL;
    return 0;
}

/* ---- the order and its answer ---- */

static void append_key(struct buf *b, const char *key)
{
    buf_printf(b, "%s\"%s\":", b->len > 1 ? "," : "", key);
}

static void append_text(struct buf *b, const char *key, const char *text)
{
    if (text == NULL)
        return;
    append_key(b, key);
    json_append_string(b, text, strlen(text));
}

static void append_number(struct buf *b, const char *key, uint32_t value)
{
    if (value == 0)
        return;
    append_key(b, key);
    buf_printf(b, "%u", value);
}

static int write_body(const struct order *o, struct buf *b)
{
    /* The node has another working folder: it gets the whole path of a file that is there. */
    struct stat file;
    bool is_file = o->verb->is_placing && stat(o->argument, &file) == 0 && S_ISREG(file.st_mode);
    char *path = is_file ? realpath(o->argument, NULL) : NULL;
    buf_append_char(b, '{');
    if (o->verb->key != NULL)
        append_text(b, o->verb->key, path != NULL ? path : o->argument);
    append_text(b, "split", o->split);
    append_text(b, "placement", o->placement);
    instance_options_append_json(b, &o->options);
    append_number(b, "n_nodes_min", o->n_nodes_min);
    append_number(b, "valid_s", o->valid_s);
    buf_append_char(b, '}');
    free(path);
    return b->error;
}

static int send_order(const struct order *o, struct buf *ret_answer, struct error *err)
{
    char url[512];
    struct buf body;
    long status = 0;
    int n = snprintf(url, sizeof(url), "%s/v1/cluster/%s", o->api, o->verb->name);
    if (n < 0 || (size_t)n >= sizeof(url))
        return error_set(err, E_INVALID, "--api: the address is too long");
    buf_init(&body, BODY_BYTES_MAX);
    int rc = write_body(o, &body);
    if (rc != 0)
        error_set(err, rc, "the order is too long: %s", error_text(rc));
    else
        rc = http_client_get(url, buf_str(&body), TIMEOUT_MS, ret_answer, &status, err);
    buf_done(&body);
    if (rc == 0 && status != 200)
        rc = http_client_refuse(url, status, ret_answer, err);
    return rc;
}

static void print_done(const json_t *answer)
{
    (void)answer;
}

static void print_invite(const json_t *answer)
{
    const char *line = json_string_value(json_object_get(answer, "invite"));
    long long expires_s = json_integer_value(json_object_get(answer, "expires_s"));
    fprintf(stderr, "On the other machine, within %lld minutes:\n\n  shoal join '%s'\n\n",
            (expires_s + 59) / 60, line != NULL ? line : "");
    printf("%s\n", line != NULL ? line : "");
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

static void print_requests(const json_t *answer)
{
    const json_t *list = json_object_get(answer, "requests"), *r;
    size_t i;
    if (json_array_size(list) == 0) {
        printf("No machine asks to join.\n");
        return;
    }
    printf("%-10s %-24s %-24s %s\n", "CODE", "NAME", "ADDRESS", "ASKED");
    json_array_foreach(list, i, r)
        printf("%-10s %-24s %-24s %lld s ago\n", text_of(r, "code"), text_of(r, "name"),
               text_of(r, "address"), (long long)json_integer_value(json_object_get(r, "age_s")));
    printf("\nCompare the code with the one on that machine, then: shoal approve CODE\n");
}

static int carry_out(const struct order *o, struct error *err)
{
    struct buf answer;
    json_t *value = NULL;
    buf_init(&answer, ANSWER_BYTES_MAX);
    int rc = send_order(o, &answer, err);
    if (rc == 0)
        rc = json_parse(buf_str(&answer), answer.len, &value, err);
    if (rc == 0 && o->as_json) {
        printf("%s\n", buf_str(&answer));
    } else if (rc == 0) {
        o->verb->print(value);
        if (o->verb->done != NULL)
            printf("%s\n", o->verb->done);
    }
    json_decref(value);
    buf_done(&answer);
    return rc;
}

int cli_order(int argc, char **argv)
{
    struct order o = {.api = CLI_DEFAULT_API};
    struct error err = {0};
    for (size_t i = 0; i < N_ORDER_VERBS; i++)
        if (strcmp(argv[0], order_verbs[i].name) == 0)
            o.verb = &order_verbs[i];
    if (o.verb == NULL)
        return error_exit_code(E_INVALID);
    int rc = parse_options(&o, argc, argv, &err);
    if (rc == 0)
        rc = carry_out(&o, &err);
    return rc < 0 ? cli_fail(&err) : 0;
}
