#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { COMPONENTS_MAX = 32, COMPONENT_BYTES = 16, IDENTITY_BYTES = 32, LINE_BYTES = 2048 };

static struct {
    enum log_level level;
    struct {
        char name[COMPONENT_BYTES];
        enum log_level level;
    } component[COMPONENTS_MAX];
    int n_components;
    char identity[IDENTITY_BYTES];
} settings = {.level = LOG_LEVEL_INFO};

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static int parse_level(const char *text, size_t len, enum log_level *ret_level)
{
    for (int i = 0; i < 4; i++)
        if (strlen(level_names[i]) == len && memcmp(level_names[i], text, len) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    if (len == 3 && memcmp(text, "off", 3) == 0) {
        *ret_level = LOG_LEVEL_OFF;
        return 0;
    }
    return E_INVALID;
}

int log_configure(const char *spec, struct error *err)
{
    settings.level = LOG_LEVEL_INFO;
    settings.n_components = 0;
    for (const char *p = spec != NULL ? spec : ""; *p != '\0';) {
        size_t len = strcspn(p, ",");
        const char *equals = memchr(p, '=', len);
        size_t name_len = equals != NULL ? (size_t)(equals - p) : 0;
        const char *text = equals != NULL ? equals + 1 : p;
        enum log_level level;
        if (parse_level(text, len - (size_t)(text - p), &level) != 0)
            return error_set(err, E_INVALID,
                             "log level '%.*s' is unknown: use error, warn, info, debug or off",
                             (int)len, p);
        if (equals == NULL) {
            settings.level = level;
        } else {
            if (settings.n_components == COMPONENTS_MAX || name_len >= COMPONENT_BYTES)
                return error_set(err, E_LIMIT,
                                 "too many or too long component names in log levels");
            memcpy(settings.component[settings.n_components].name, p, name_len);
            settings.component[settings.n_components].name[name_len] = '\0';
            settings.component[settings.n_components++].level = level;
        }
        p += len + (p[len] == ',');
    }
    return 0;
}

void log_set_identity(const char *identity)
{
    snprintf(settings.identity, sizeof(settings.identity), "%s", identity);
}

int log_enabled(enum log_level level, const char *component)
{
    for (int i = 0; i < settings.n_components; i++)
        if (strcmp(settings.component[i].name, component) == 0)
            return (int)level <= (int)settings.component[i].level;
    return (int)level <= (int)settings.level;
}

void log_write(enum log_level level, const char *component, const char *fmt, ...)
{
    if (!log_enabled(level, component))
        return;
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);

    char line[LINE_BYTES];
    size_t len = strftime(line, sizeof(line), "%Y-%m-%dT%H:%M:%S", &utc);
    len += (size_t)snprintf(line + len, sizeof(line) - len, ".%03ldZ %s %s %s%s",
                            now.tv_nsec / 1000000, level_names[level], component, settings.identity,
                            settings.identity[0] != '\0' ? " " : "");
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line + len, sizeof(line) - len - 1, fmt, args);
    va_end(args);
    if (n > 0)
        len += (size_t)n < sizeof(line) - len - 1 ? (size_t)n : sizeof(line) - len - 2;
    /* What peers and files say must not forge lines. */
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)line[i] < ' ')
            line[i] = ' ';
    line[len++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, len);
    (void)written; /* nowhere left to report it */
}
