/*
 * Logging: one event, one line, once, at the place that decides. Lines are logfmt on stderr:
 * `2026-01-31T12:00:00.123Z info mesh peer=b silent 1004 ms (limit 1000) -> suspect`.
 *
 * Levels are set as a whole or per component: `info,mesh=debug,comm=warn` (environment variable
 * SHOAL_LOG). Thread: any; a line is written with a single write(2).
 */
#ifndef SHOAL_BASE_LOG_H
#define SHOAL_BASE_LOG_H

#include "base/error.h"

enum log_level {
    LOG_LEVEL_ERROR,
    LOG_LEVEL_WARN,
    LOG_LEVEL_INFO,
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_OFF = -1
};

/* Sets levels from a text such as "info,mesh=debug". NULL means "info". Errors: E_INVALID. Not
 * while other threads log. */
int log_configure(const char *spec, struct error *err);
/* Name put into each line after the component, such as "node=alpha" or "rank=1"; "" for none.
 * Copied, cut at 31 bytes. */
void log_set_identity(const char *identity);
/* Whether a line of this level would be written: for messages that cost something to build. */
int log_enabled(enum log_level level, const char *component);
void log_write(enum log_level level, const char *component, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define log_error(component, ...) log_write(LOG_LEVEL_ERROR, component, __VA_ARGS__)
#define log_warn(component, ...)  log_write(LOG_LEVEL_WARN, component, __VA_ARGS__)
#define log_info(component, ...)  log_write(LOG_LEVEL_INFO, component, __VA_ARGS__)
#define log_debug(component, ...) log_write(LOG_LEVEL_DEBUG, component, __VA_ARGS__)

#endif
