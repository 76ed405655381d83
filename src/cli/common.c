#include "cli/cli.h"

#include "cli/model_options.h"
#include "comm/comm.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cli_fail(const struct error *err)
{
    fprintf(stderr, "shoal: %s\n", err->message[0] != '\0' ? err->message : error_text(err->code));
    comm_mpi_abort(error_exit_code(err->code));
    return error_exit_code(err->code);
}

int cli_parse_u64(const char *option, const char *text, uint64_t *ret, struct error *err)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    /* strtoull takes signs and spaces; a number here begins with a digit. */
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0)
        return error_set(err, E_INVALID, "%s: '%s' is not a whole number", option, text);
    *ret = v;
    return 0;
}

int cli_parse_u32(const char *option, const char *text, uint32_t min, uint32_t max, uint32_t *ret,
                  struct error *err)
{
    uint64_t v;
    int rc = cli_parse_u64(option, text, &v, err);
    if (rc != 0)
        return rc;
    if (v < min || v > max)
        return error_set(err, E_INVALID, "%s: %s is not between %u and %u", option, text, min, max);
    *ret = (uint32_t)v;
    return 0;
}

int cli_parse_float(const char *option, const char *text, float min, float max, float *ret,
                    struct error *err)
{
    char *end;
    float v = strtof(text, &end);
    if (end == text || *end != '\0' || !isfinite(v) || v < min || v > max)
        return error_set(err, E_INVALID, "%s: '%s' is not a number between %g and %g", option, text,
                         (double)min, (double)max);
    *ret = v;
    return 0;
}

int cli_parse_wire(const char *option, const char *text, enum comm_wire *ret, struct error *err)
{
    return comm_wire_parse(text, ret)
               ? 0
               : error_set(err, E_INVALID, "%s %s: f32, f16 or q8", option, text);
}

int cli_parse_kv(const char *option, const char *text, enum kv_type *ret, struct error *err)
{
    return kv_type_parse(text, ret) ? 0
                                    : error_set(err, E_INVALID, "%s %s: f16 or q8", option, text);
}

static int join_path(char *ret_path, size_t size, const char *folder, const char *below,
                     const char *name, struct error *err)
{
    int n = snprintf(ret_path, size, "%s%s/shoal/models/%s.gguf", folder, below, name);
    return n < 0 || (size_t)n >= size
               ? error_set(err, E_LIMIT, "the model's path is longer than %zu bytes", size - 1)
               : 0;
}

/* A model that has come by `shoal pull`, or lies in a folder of SHOAL_MODELS. */
static int find_by_card(const char *name, char *ret_path, size_t size, struct error *err)
{
    struct model_options o;
    struct models *models = NULL;
    struct model_entry *e = malloc(sizeof(*e));
    int rc = e != NULL ? model_options_init(&o, err) : error_set(err, E_NOMEM, "out of memory");
    if (rc == 0)
        rc = model_options_open(&o, &models, err);
    if (rc == 0)
        rc = models_find(models, name, e, err);
    if (rc == 0 && strlen(e->path) >= size)
        rc = error_set(err, E_LIMIT, "the model's path is longer than %zu bytes", size - 1);
    if (rc == 0)
        memcpy(ret_path, e->path, strlen(e->path) + 1);
    models_close(models);
    free(e);
    return rc;
}

int cli_find_model(const char *name, char *ret_path, size_t size, struct error *err)
{
    if (access(name, F_OK) == 0) {
        int n = snprintf(ret_path, size, "%s", name);
        return n < 0 || (size_t)n >= size
                   ? error_set(err, E_LIMIT, "the model's path is longer than %zu bytes", size - 1)
                   : 0;
    }
    const char *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    /* A name with a slash is a path and nothing else. */
    if (strchr(name, '/') != NULL || ((data == NULL || data[0] != '/') && home == NULL))
        return error_set(err, E_NOTFOUND, "there is no model file %s", name);
    int rc = data != NULL && data[0] == '/'
                 ? join_path(ret_path, size, data, "", name, err)
                 : join_path(ret_path, size, home, "/.local/share", name, err);
    if (rc == 0 && access(ret_path, F_OK) != 0)
        rc = find_by_card(name, ret_path, size, err);
    return rc;
}

uint32_t cli_default_threads(uint32_t n_ranks)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    uint32_t n = n_cpus > 0 ? (uint32_t)n_cpus / n_ranks : 1;
    return n > 0 ? n : 1;
}
