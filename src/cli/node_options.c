#include "cli/node_options.h"

#include "cli/cli.h"
#include "cli/device_probe.h"
#include "cli/instance_options.h"
#include "cli/model_options.h"
#include "comm/comm.h"
#include "device/device.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int node_options_data_dir(char *ret_path, size_t size, struct error *err)
{
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    int n;
    if (data != NULL && data[0] == '/')
        n = snprintf(ret_path, size, "%s/shoal", data);
    else if (home != NULL && home[0] == '/')
        n = snprintf(ret_path, size, "%s/.local/share/shoal", home);
    else
        return error_set(err, E_INVALID,
                         "neither XDG_DATA_HOME nor HOME is set: say --data-dir DIR");
    return n > 0 && (size_t)n < size
               ? 0
               : error_set(err, E_LIMIT, "the data folder's path is too long");
}

/* Numeric form of a host name, because nodes do not resolve names while they run. */
static int resolve(const char *option, const char *host, char ret_host[64], struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_family = AF_UNSPEC}, *list = NULL;
    int rc = getaddrinfo(host, NULL, &hints, &list);
    if (rc != 0)
        return error_set(err, E_NOTFOUND, "%s: host '%s': %s", option, host, gai_strerror(rc));
    rc = getnameinfo(list->ai_addr, list->ai_addrlen, ret_host, 64, NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(list);
    return rc != 0 ? error_set(err, E_NOTFOUND, "%s: host '%s': %s", option, host, gai_strerror(rc))
                   : 0;
}

/* "host:port", "[v6]:port" or "host" alone. */
static int parse_address(const char *option, const char *text, uint16_t default_port,
                         struct mesh_address *ret, struct error *err)
{
    char host[256];
    uint32_t port = default_port;
    const char *colon = strrchr(text, ':'), *end = text + strlen(text);
    bool is_bracketed = text[0] == '[';
    if (is_bracketed) {
        const char *close = strchr(text, ']');
        if (close == NULL || (close[1] != '\0' && close[1] != ':'))
            return error_set(err, E_INVALID, "%s: '%s' is not ADDR:PORT", option, text);
        colon = close[1] == ':' ? close + 1 : NULL;
        end = close;
        text++;
    } else if (colon != NULL) {
        end = colon;
    }
    if (colon != NULL) {
        int rc = cli_parse_u32(option, colon + 1, 0, 65535, &port, err);
        if (rc != 0)
            return rc;
    }
    int n = snprintf(host, sizeof(host), "%.*s", (int)(end - text), text);
    if (n <= 0 || (size_t)n >= sizeof(host))
        return error_set(err, E_INVALID, "%s: '%s' is not ADDR:PORT", option, text);
    ret->port = (uint16_t)port;
    return resolve(option, host, ret->host, err);
}

static int read_secret(const char *path, struct node_config *c, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, -errno, "--secret-file: cannot read %s: %s", path, strerror(errno));
    ssize_t n = read(fd, c->secret, sizeof(c->secret));
    close(fd);
    while (n > 0 && (c->secret[n - 1] == '\n' || c->secret[n - 1] == '\r'))
        n--;
    if (n < 16 || (size_t)n >= sizeof(c->secret))
        return error_set(
            err, E_INVALID,
            "--secret-file: %s must hold 16 to %zu bytes; `openssl rand -hex 32` makes "
            "good ones",
            path, sizeof(c->secret) - 1);
    c->n_secret = (uint32_t)n;
    return 0;
}

static int copy_text(const char *option, const char *text, char *ret, size_t size,
                     struct error *err)
{
    if (text[0] == '\0' || strlen(text) >= size)
        return error_set(err, E_INVALID, "%s: must have 1 to %zu characters", option, size - 1);
    for (const char *p = text; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            return error_set(err, E_INVALID, "%s: has a control character", option);
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

/* PEER=ADDRESS. */
static int add_route(const char *text, struct node_config *c, struct error *err)
{
    const char *equals = strchr(text, '=');
    struct mesh_route *r = &c->routes[c->n_routes];
    char peer[256];
    if (c->n_routes == MESH_ROUTES_MAX)
        return error_set(err, E_LIMIT, "--route: at most %d are possible", MESH_ROUTES_MAX);
    size_t n = equals != NULL ? (size_t)(equals - text) : 0;
    if (equals == NULL || n == 0 || n >= sizeof(peer) || equals[1] == '\0')
        return error_set(err, E_INVALID, "--route: '%s' is not PEER=ADDRESS", text);
    memcpy(peer, text, n);
    peer[n] = '\0';
    int rc = copy_text("--route", peer, r->peer, sizeof(r->peer), err);
    if (rc == 0)
        rc = resolve("--route", equals + 1, r->host, err);
    c->n_routes += rc == 0;
    return rc;
}

static int add_folder(const char *text, struct node_config *c, struct error *err)
{
    if (c->n_folders == NODE_FOLDERS_MAX)
        return error_set(err, E_LIMIT, "--models: at most %d folders are possible",
                         NODE_FOLDERS_MAX);
    int rc = copy_text("--models", text, c->folders[c->n_folders], sizeof(c->folders[0]), err);
    c->n_folders += rc == 0;
    return rc;
}

/* What the environment says of models: the same as for `shoal pull`. */
static int take_environment(struct node_config *c, struct error *err)
{
    struct model_options o;
    int rc = model_options_init(&o, err);
    for (uint32_t i = 0; rc == 0 && i < o.n_folders; i++)
        rc = add_folder(o.folders[i], c, err);
    if (rc == 0 && o.hub != NULL && o.hub[0] != '\0')
        rc = copy_text("SHOAL_HUB", o.hub, c->hub, sizeof(c->hub), err);
    if (rc == 0 && o.token != NULL && o.token[0] != '\0')
        rc = copy_text("HF_TOKEN", o.token, c->hub_token, sizeof(c->hub_token), err);
    c->is_offline = o.is_offline;
    return rc;
}

enum option_key {
    OPTION_MODEL = 1,
    OPTION_LISTEN,
    OPTION_MESH,
    OPTION_PEER,
    OPTION_ROUTE,
    OPTION_NO_DISCOVERY,
    OPTION_MLX,
    OPTION_CLOSED,
    OPTION_SECRET_FILE,
    OPTION_API_KEYS,
    OPTION_NAME,
    OPTION_DATA_DIR,
    OPTION_SPLIT,
    OPTION_PLACEMENT,
    OPTION_MEMORY,
    OPTION_NO_MEASURE,
    OPTION_THREADS,
    OPTION_DEVICE,
    OPTION_HUB,
    OPTION_OFFLINE,
    OPTION_MODELS,
    OPTION_HELP,
};

static const struct option options[] = {
    {"model", required_argument, NULL, OPTION_MODEL},
    {"listen", required_argument, NULL, OPTION_LISTEN},
    {"mesh", required_argument, NULL, OPTION_MESH},
    {"peer", required_argument, NULL, OPTION_PEER},
    {"route", required_argument, NULL, OPTION_ROUTE},
    {"no-discovery", no_argument, NULL, OPTION_NO_DISCOVERY},
    {"mlx", no_argument, NULL, OPTION_MLX},
    {"closed", no_argument, NULL, OPTION_CLOSED},
    {"secret-file", required_argument, NULL, OPTION_SECRET_FILE},
    {"api-keys", required_argument, NULL, OPTION_API_KEYS},
    {"name", required_argument, NULL, OPTION_NAME},
    {"data-dir", required_argument, NULL, OPTION_DATA_DIR},
    {"split", required_argument, NULL, OPTION_SPLIT},
    {"placement", required_argument, NULL, OPTION_PLACEMENT},
    {"memory", required_argument, NULL, OPTION_MEMORY},
    {"no-measure", no_argument, NULL, OPTION_NO_MEASURE},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"device", required_argument, NULL, OPTION_DEVICE},
    {"hub", required_argument, NULL, OPTION_HUB},
    {"offline", no_argument, NULL, OPTION_OFFLINE},
    {"models", required_argument, NULL, OPTION_MODELS},
    INSTANCE_OPTIONS,
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int take_option(int key, const char *value, struct node_config *c, struct error *err)
{
    uint32_t mib;
    int rc = 0;
    switch (key) {
    case OPTION_MODEL:
        return copy_text("--model", value, c->model, sizeof(c->model), err);
    case OPTION_LISTEN:
        return parse_address("--listen", value, NODE_API_PORT, &c->api, err);
    case OPTION_MESH:
        return parse_address("--mesh", value, NODE_MESH_PORT, &c->mesh, err);
    case OPTION_PEER:
        if (c->n_peers == LIMIT_PEERS)
            return error_set(err, E_LIMIT, "--peer: at most %d are possible", LIMIT_PEERS);
        rc = parse_address("--peer", value, NODE_MESH_PORT, &c->peers[c->n_peers], err);
        c->n_peers += rc == 0;
        return rc;
    case OPTION_ROUTE:
        return add_route(value, c, err);
    case OPTION_NO_DISCOVERY:
        c->discovers = false;
        return 0;
    case OPTION_MLX:
        c->announces_mlx = true;
        return 0;
    case OPTION_CLOSED:
        c->is_closed = true;
        return 0;
    case OPTION_PLACEMENT:
        return placement_rule_parse(value, &c->rule)
                   ? 0
                   : error_set(err, E_INVALID, "--placement: '%s' is not speed or memory", value);
    case OPTION_MEMORY:
        rc = cli_parse_u32("--memory", value, 1, UINT32_MAX, &mib, err);
        if (rc == 0)
            c->memory_bytes_max = (uint64_t)mib << 20;
        return rc;
    case OPTION_NO_MEASURE:
        c->measures = false;
        return 0;
    case OPTION_SECRET_FILE:
        return read_secret(value, c, err);
    case OPTION_API_KEYS:
        return copy_text("--api-keys", value, c->api_keys, sizeof(c->api_keys), err);
    case OPTION_NAME:
        return copy_text("--name", value, c->name, sizeof(c->name), err);
    case OPTION_DATA_DIR:
        return copy_text("--data-dir", value, c->data_dir, sizeof(c->data_dir), err);
    case OPTION_SPLIT:
        rc = split_check_text(value, err);
        return rc != 0 ? error_wrap(err, rc, "--split")
                       : copy_text("--split", value, c->split, sizeof(c->split), err);
    case OPTION_THREADS:
        return cli_parse_u32("--threads", value, 1, 1024, &c->n_threads, err);
    case OPTION_DEVICE:
        return copy_text("--device", value, c->device, sizeof(c->device), err);
    case OPTION_HUB:
        return copy_text("--hub", value, c->hub, sizeof(c->hub), err);
    case OPTION_OFFLINE:
        c->is_offline = true;
        return 0;
    case OPTION_MODELS:
        return add_folder(value, c, err);
    default:
        if (key >= INSTANCE_OPTION_FIRST)
            return instance_option_take(&c->options, (enum instance_option)key, value, err);
        return error_set(err, E_INVALID, "see `shoal serve --help`");
    }
}

/* Models may take what the device has, instead of this computer's memory. */
static int fit_device(struct node_config *c, struct error *err)
{
    struct engine_device found;
    if (c->device[0] == '\0')
        return 0;
    int rc = device_probe(c->device, &found, err);
    if (rc != 0)
        return error_wrap(err, rc, "--device");
    if (found.is_cpu)
        found.name[0] = '\0';
    memcpy(c->device, found.name, sizeof(c->device));
    if (found.is_cpu || found.memory_bytes_total == 0)
        return 0;
    c->device_bytes_total = found.memory_bytes_total;
    if (c->memory_bytes_max == 0 || c->memory_bytes_max > found.memory_bytes_free)
        c->memory_bytes_max = found.memory_bytes_free;
    return 0;
}

/* A model's path must mean the same on all nodes, so it is made absolute; a name is looked up by
 * the node, in its data folder. */
static int finish(struct node_config *c, struct error *err)
{
    char folder[PATH_MAX], path[sizeof(c->model)];
    int rc = comm_check_transport(c->options.transport, err);
    if (rc == 0 && c->data_dir[0] == '\0')
        rc = node_options_data_dir(c->data_dir, sizeof(c->data_dir), err);
    if (rc == 0 && c->model[0] != '\0' && c->model[0] != '/' && access(c->model, F_OK) == 0 &&
        getcwd(folder, sizeof(folder)) != NULL) {
        int len = snprintf(path, sizeof(path), "%s/%s", folder, c->model);
        if (len < 0 || (size_t)len >= sizeof(path))
            return error_set(err, E_LIMIT, "--model: the path is longer than %zu bytes",
                             sizeof(path) - 1);
        memcpy(c->model, path, (size_t)len + 1);
    }
    if (c->name[0] == '\0') {
        struct device_info device;
        device_get_info(&device);
        snprintf(c->name, sizeof(c->name), "%s", device.host_name);
    }
    ssize_t n = readlink("/proc/self/exe", c->program, sizeof(c->program) - 1);
    if (rc == 0 && n <= 0)
        rc = error_set(err, -errno, "cannot find this program's own file: %s", strerror(errno));
    return rc == 0 ? fit_device(c, err) : rc;
}

int node_options_parse(int argc, char **argv, struct node_config *ret_config, bool *ret_wants_help,
                       struct error *err)
{
    struct node_config *c = ret_config;
    int key;
    *c = (struct node_config){
        .api = {.host = "127.0.0.1", .port = NODE_API_PORT},
        .mesh = {.host = "0.0.0.0", .port = NODE_MESH_PORT},
        .discovers = true,
        .measures = true,
    };
    int rc = take_environment(c, err);
    if (rc != 0)
        return rc;
    optind = 1;
    while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == OPTION_HELP) {
            *ret_wants_help = true;
            return 0;
        }
        rc = take_option(key, optarg, c, err);
        if (rc != 0)
            return rc;
    }
    if (optind < argc)
        return error_set(err, E_INVALID, "'%s' is not an option: see `shoal serve --help`",
                         argv[optind]);
    return finish(c, err);
}
