#include "cli/local_nodes.h"

#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "base/rng.h"
#include "cli/http_client.h"
#include "engine/devices.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif

enum {
    START_MS_MAX = 20000,  /* until a node says where it listens */
    READY_MS_MAX = 900000, /* until the model is loaded everywhere */
    STOP_MS_MAX = 15000,   /* a node drains for at most 10 s */
    KILLED_MS_MAX = 5000,
    POLL_MS = 50,
    ANSWER_BYTES_MAX = 16 << 20,
    ARGS_MAX = 2 * LOCAL_NODES_MAX + 32,
};

struct local_node {
    char name[16];
    pid_t pid; /* 0: has ended */
    int output;
    char api[128], mesh[96];
};

struct local_set_of_nodes {
    struct local_config config;
    char folder[PATH_MAX];
    bool is_temporary;
    char secret[PATH_MAX + 16]; /* file: the nodes know each other by it */
    uint32_t n_nodes;
    struct local_node node[LOCAL_NODES_MAX];
};

static uint64_t now_ms(void)
{
    return clock_now_ns() / 1000000u;
}

/* Waits for a signal, at most ms. Returns its number, 0 when none came. */
static int wait_signal(const sigset_t *signals, uint32_t ms)
{
    struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    int number = sigtimedwait(signals, NULL, &t);
    return number > 0 ? number : 0;
}

static bool is_stop(int number)
{
    return number == SIGTERM || number == SIGINT;
}

/* ---- one node ---- */

static void exec_child(char **args, int output, pid_t parent)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setpgid(0, 0); /* Ctrl-C is for the parent, which then tells each node once */
#ifdef __linux__
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* never outlive a parent that was killed */
#endif
    if (getppid() != parent || dup2(output, STDOUT_FILENO) < 0)
        _exit(1);
    execv(args[0], args);
    fprintf(stderr, "shoal: cannot start %s: %s\n", args[0], strerror(errno));
    _exit(1);
}

static int spawn(struct local_node *n, char **args, struct error *err)
{
    int pipe_fds[2];
    pid_t parent = getpid();
    if (pipe2(pipe_fds, O_CLOEXEC) != 0)
        return error_set(err, -errno, "cannot make a pipe for a node: %s", strerror(errno));
    n->pid = fork();
    if (n->pid == 0)
        exec_child(args, pipe_fds[1], parent);
    close(pipe_fds[1]);
    if (n->pid < 0) {
        n->pid = 0;
        close(pipe_fds[0]);
        return error_set(err, -errno, "cannot start a node: %s", strerror(errno));
    }
    n->output = pipe_fds[0];
    fcntl(n->output, F_SETFL, O_NONBLOCK);
    return 0;
}

/* Drops what a node prints, so that it never waits for us. */
static void drain_output(struct local_node *n)
{
    char text[4096];
    while (n->output >= 0 && read(n->output, text, sizeof(text)) > 0)
        continue;
}

void local_nodes_reap(struct local_set_of_nodes *set)
{
    for (uint32_t i = 0; i < set->n_nodes; i++) {
        struct local_node *n = &set->node[i];
        int status;
        drain_output(n);
        if (n->pid == 0 || waitpid(n->pid, &status, WNOHANG) != n->pid)
            continue;
        if (WIFSIGNALED(status))
            fprintf(stderr, "shoal: node %s (pid %d) was ended by signal %d\n", n->name,
                    (int)n->pid, WTERMSIG(status));
        else if (WEXITSTATUS(status) != 0)
            fprintf(stderr, "shoal: node %s (pid %d) exited with code %d\n", n->name, (int)n->pid,
                    WEXITSTATUS(status));
        n->pid = 0;
    }
}

uint32_t local_nodes_alive(const struct local_set_of_nodes *set)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < set->n_nodes; i++)
        count += set->node[i].pid != 0;
    return count;
}

/* The node's first line tells its ports: "... API at http://HOST:PORT, mesh at HOST:PORT; ...". */
static int read_addresses(struct local_set_of_nodes *set, struct local_node *n,
                          const sigset_t *signals, struct error *err)
{
    char line[1024];
    size_t len = 0;
    uint64_t end_ms = now_ms() + START_MS_MAX;
    while (now_ms() < end_ms) {
        ssize_t got = read(n->output, line + len, sizeof(line) - 1 - len);
        if (got > 0) {
            len += (size_t)got;
            line[len] = '\0';
            if (strchr(line, '\n') != NULL)
                break;
            continue;
        }
        if (got == 0) { /* it has ended, and has said why on standard error */
            wait_signal(signals, POLL_MS);
            local_nodes_reap(set);
            return error_set(err, E_UNAVAILABLE, "node %s could not start", n->name);
        }
        if (is_stop(wait_signal(signals, 10)))
            return error_set(err, E_CANCELLED, "stopped");
    }
    line[len] = '\0';
    const char *api = strstr(line, "http://"), *mesh = strstr(line, "mesh at ");
    if (api == NULL || mesh == NULL || sscanf(api, "%127[^, \n]", n->api) != 1 ||
        sscanf(mesh + 8, "%95[^; \n]", n->mesh) != 1)
        return error_set(err, E_TIMEOUT, "node %s did not say where it listens", n->name);
    return 0;
}

struct arguments { /* of one node; texts live here */
    char *list[ARGS_MAX + 1];
    uint32_t n;
    char program[PATH_MAX], data_dir[PATH_MAX + 32], n_threads[16], device[ENGINE_DEVICE_BYTES];
};

static void add(struct arguments *a, const char *option, const char *value)
{
    if (a->n + 2 > ARGS_MAX)
        return;
    a->list[a->n++] = (char *)(uintptr_t)option;
    if (value != NULL)
        a->list[a->n++] = (char *)(uintptr_t)value;
    a->list[a->n] = NULL;
}

static int start_node(struct local_set_of_nodes *set, uint32_t index, const sigset_t *signals,
                      struct error *err)
{
    const struct local_config *c = &set->config;
    struct local_node *n = &set->node[index];
    struct arguments *a = calloc(1, sizeof(*a));
    if (a == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    ssize_t len = readlink("/proc/self/exe", a->program, sizeof(a->program) - 1);
    snprintf(n->name, sizeof(n->name), "node-%u", index + 1);
    snprintf(a->data_dir, sizeof(a->data_dir), "%s/%s", set->folder, n->name);
    snprintf(a->n_threads, sizeof(a->n_threads), "%u", c->n_threads);
    add(a, a->program, "serve");
    add(a, "--name", n->name);
    add(a, "--data-dir", a->data_dir);
    add(a, "--listen", "127.0.0.1:0");
    add(a, "--mesh", "127.0.0.1:0");
    add(a, "--secret-file", set->secret);
    add(a, "--no-discovery", NULL); /* others on this computer are other clusters */
    add(a, "--no-measure", NULL);   /* N at a time would measure each other */
    add(a, "--threads", a->n_threads);
    int rc = c->devices != NULL ? engine_device_nth(c->devices, index, a->device, err) : 0;
    if (a->device[0] != '\0')
        add(a, "--device", a->device);
    for (int i = 0; i < N_INSTANCE_OPTIONS; i++)
        if (c->option[i] != NULL)
            add(a, instance_option_word((enum instance_option)(INSTANCE_OPTION_FIRST + i)),
                c->option[i]);
    if (index == 0) { /* started last: it knows the others and coordinates the model */
        if (c->model[0] != '\0')
            add(a, "--model", c->model);
        if (c->split != NULL)
            add(a, "--split", c->split);
        add(a, "--placement", c->placement != NULL ? c->placement : "memory");
        for (uint32_t i = 1; i < set->n_nodes; i++)
            add(a, "--peer", set->node[i].mesh);
    }
    if (rc == 0)
        rc = len > 0 ? spawn(n, a->list, err)
                     : error_set(err, E_INTERNAL, "cannot find this program's own file");
    free(a);
    return rc == 0 ? read_addresses(set, n, signals, err) : rc;
}

/* ---- all of them ---- */

static int fetch(const struct local_node *n, const char *path, json_t **ret, struct error *err)
{
    char url[256];
    struct buf answer;
    long status = 0;
    snprintf(url, sizeof(url), "%s%s", n->api, path);
    buf_init(&answer, ANSWER_BYTES_MAX);
    int rc = http_client_get(url, NULL, 10000, &answer, &status, err);
    if (rc == 0 && status != 200)
        rc = error_set(err, E_UNAVAILABLE, "%s answered with status %ld", url, status);
    if (rc == 0)
        rc = json_parse(buf_str(&answer), answer.len, ret, err);
    buf_done(&answer);
    return rc;
}

/* Whether this node's API would answer a request for the model now; without a model, whether it
 * sees all the others. */
static bool node_is_ready(const struct local_set_of_nodes *set, const struct local_node *n)
{
    bool has_model = set->config.model[0] != '\0', ready = false;
    json_t *doc = NULL;
    struct error err;
    if (fetch(n, has_model ? "/v1/models" : "/v1/cluster/state", &doc, &err) != 0)
        return false;
    if (has_model)
        ready =
            json_is_true(json_object_get(json_array_get(json_object_get(doc, "data"), 0), "ready"));
    else
        ready = json_array_size(json_object_get(doc, "nodes")) == set->n_nodes;
    json_decref(doc);
    return ready;
}

static int wait_ready(struct local_set_of_nodes *set, const sigset_t *signals, struct error *err)
{
    uint64_t end_ms = now_ms() + READY_MS_MAX;
    for (uint32_t i = 0; i < set->n_nodes;) {
        if (node_is_ready(set, &set->node[i])) {
            i++;
            continue;
        }
        if (is_stop(wait_signal(signals, POLL_MS)))
            return error_set(err, E_CANCELLED, "stopped");
        local_nodes_reap(set);
        if (local_nodes_alive(set) < set->n_nodes)
            return error_set(err, E_UNAVAILABLE, "a node ended before the model was ready");
        if (now_ms() > end_ms)
            return error_set(err, E_TIMEOUT, "the model was not ready in %d s",
                             READY_MS_MAX / 1000);
    }
    return 0;
}

static int make_folder(struct local_set_of_nodes *set, struct error *err)
{
    const char *base = getenv("TMPDIR");
    if (set->config.data_dir != NULL) {
        snprintf(set->folder, sizeof(set->folder), "%s", set->config.data_dir);
        return 0;
    }
    snprintf(set->folder, sizeof(set->folder), "%s/shoal-local-XXXXXX",
             base != NULL && base[0] == '/' ? base : "/tmp");
    if (mkdtemp(set->folder) == NULL)
        return error_set(err, -errno, "cannot make folder %s: %s", set->folder, strerror(errno));
    set->is_temporary = true;
    return 0;
}

static int make_secret(struct local_set_of_nodes *set, struct error *err)
{
    uint8_t random[32];
    snprintf(set->secret, sizeof(set->secret), "%s/secret", set->folder);
    if (mkdir(set->folder, 0700) != 0 && errno != EEXIST)
        return error_set(err, -errno, "cannot make folder %s: %s", set->folder, strerror(errno));
    if (rng_system(random, sizeof(random)) != 0)
        return error_set(err, E_INTERNAL, "the system gives no random numbers");
    int fd = open(set->secret, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *f = fd >= 0 ? fdopen(fd, "w") : NULL;
    bool is_written = f != NULL;
    for (size_t i = 0; i < sizeof(random) && f != NULL; i++)
        is_written &= fprintf(f, "%02x", random[i]) == 2;
    if (f != NULL)
        is_written &= fclose(f) == 0;
    else if (fd >= 0)
        close(fd);
    return is_written ? 0 : error_set(err, E_IO, "cannot write %s", set->secret);
}

/* Waits until no request is under way, for the time that a node would drain at most. */
static void wait_idle(struct local_set_of_nodes *set, const sigset_t *signals)
{
    uint64_t end_ms = now_ms() + STOP_MS_MAX;
    for (uint32_t i = 0; i < set->n_nodes && now_ms() < end_ms;) {
        json_t *state = NULL;
        struct error err;
        bool is_idle = true;
        if (set->node[i].pid != 0 && fetch(&set->node[i], "/v1/cluster/state", &state, &err) == 0) {
            const json_t *r = json_object_get(state, "requests");
            is_idle = json_integer_value(json_object_get(r, "running")) == 0 &&
                      json_integer_value(json_object_get(r, "queued")) == 0;
        }
        json_decref(state);
        if (is_idle)
            i++;
        else if (is_stop(wait_signal(signals, POLL_MS)))
            return; /* the second one: at once */
    }
}

int local_nodes_start(const struct local_config *c, const sigset_t *signals,
                      struct local_set_of_nodes **ret_set, struct error *err)
{
    struct local_set_of_nodes *set = calloc(1, sizeof(*set));
    if (set == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    set->config = *c;
    set->n_nodes = c->n_nodes;
    for (uint32_t i = 0; i < LOCAL_NODES_MAX; i++)
        set->node[i].output = -1;
    *ret_set = set;
    int rc = make_folder(set, err);
    if (rc == 0)
        rc = make_secret(set, err);
    /* The first node is started last, when the others' addresses are known. */
    for (uint32_t i = 0; rc == 0 && i < set->n_nodes; i++)
        rc = start_node(set, set->n_nodes - 1 - i, signals, err);
    return rc == 0 ? wait_ready(set, signals, err) : rc;
}

/* Calls for each rank of the first instance that is on this node; returns how many. */
static uint32_t print_runners(const json_t *state, const char *node, bool as_json)
{
    const json_t *instance = json_array_get(json_object_get(state, "instances"), 0);
    const json_t *rank;
    size_t index;
    uint32_t count = 0;
    json_array_foreach(json_object_get(instance, "ranks"), index, rank)
    {
        const char *name = json_string_value(json_object_get(rank, "node"));
        const json_t *layers = json_object_get(rank, "layers");
        const json_t *heads = json_object_get(rank, "kv_heads");
        if (name == NULL || strcmp(name, node) != 0)
            continue;
        int pid = (int)json_integer_value(json_object_get(rank, "pid"));
        if (as_json)
            printf("%s{\"rank\":%zu,\"pid\":%d}", count > 0 ? "," : "", index, pid);
        else
            printf("          rank %zu  pid %d  layers %d-%d  kv heads %d-%d  %.1f MiB\n", index,
                   pid, (int)json_integer_value(json_array_get(layers, 0)),
                   (int)json_integer_value(json_array_get(layers, 1)) - 1,
                   (int)json_integer_value(json_array_get(heads, 0)),
                   (int)json_integer_value(json_array_get(heads, 1)) - 1,
                   (double)json_integer_value(json_object_get(rank, "weight_bytes")) / 1048576.0);
        count++;
    }
    return count;
}

int local_nodes_print(struct local_set_of_nodes *set, struct error *err)
{
    json_t *state = NULL;
    int rc = fetch(&set->node[0], "/v1/cluster/state", &state, err);
    if (rc != 0)
        return rc;
    if (set->config.json)
        printf("{\"nodes\":[");
    for (uint32_t i = 0; i < set->n_nodes; i++) {
        const struct local_node *n = &set->node[i];
        if (set->config.json) {
            printf("%s{\"name\":\"%s\",\"api\":\"%s\",\"pid\":%d,\"runners\":[", i > 0 ? "," : "",
                   n->name, n->api, (int)n->pid);
            print_runners(state, n->name, true);
            printf("]}");
        } else {
            printf("%-8s  pid %-7d  api %s\n", n->name, (int)n->pid, n->api);
            print_runners(state, n->name, false);
        }
    }
    printf(set->config.json ? "]}\n" : "ready; Ctrl-C stops all\n");
    fflush(stdout);
    json_decref(state);
    return 0;
}

/* ---- the end ---- */

static void signal_all(const struct local_set_of_nodes *set, int number)
{
    for (uint32_t i = 0; i < set->n_nodes; i++)
        if (set->node[i].pid != 0)
            kill(set->node[i].pid, number);
}

static void wait_for(struct local_set_of_nodes *set, const sigset_t *signals, uint64_t ms)
{
    uint64_t end_ms = now_ms() + ms;
    while (local_nodes_alive(set) > 0 && now_ms() < end_ms) {
        if (is_stop(wait_signal(signals, POLL_MS)))
            signal_all(set, SIGTERM); /* the second one: at once */
        local_nodes_reap(set);
    }
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st, (void)kind, (void)at;
    return remove(path);
}

void local_nodes_stop(struct local_set_of_nodes *set, const sigset_t *signals)
{
    if (set == NULL)
        return;
    /* Stopped one by one, nodes would hand their shards to those that are left. */
    wait_idle(set, signals);
    signal_all(set, SIGTERM);
    wait_signal(signals, POLL_MS);
    signal_all(set, SIGTERM); /* nothing runs: at once */
    wait_for(set, signals, STOP_MS_MAX);
    if (local_nodes_alive(set) > 0) {
        signal_all(set, SIGKILL);
        wait_for(set, signals, KILLED_MS_MAX);
    }
    for (uint32_t i = 0; i < set->n_nodes; i++)
        if (set->node[i].output >= 0)
            close(set->node[i].output);
    if (set->is_temporary)
        nftw(set->folder, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    free(set);
}
