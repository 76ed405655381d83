/* What is refused is counted by kind. One line for each address and kind in a minute, and no more
 * than the table has room for, so that strangers cannot fill the log. */
#include "base/log.h"
#include "mesh/internal.h"

#include <stdio.h>
#include <string.h>

enum { NOTED_MS = 60000 };

static const char *const names[MESH_REFUSAL_COUNT] = {
#define REFUSAL_NAME(name, text) [MESH_REFUSED_##name] = (text),
    MESH_REFUSALS(REFUSAL_NAME)
#undef REFUSAL_NAME
};

const char *mesh_refusal_name(enum mesh_refusal kind)
{
    return names[kind];
}

static bool is_worth_a_line(struct mesh *m, const char *host, enum mesh_refusal kind)
{
    struct noted *oldest = &m->noted[0];
    uint64_t now_ms = uv_now(m->loop);
    for (size_t i = 0; i < sizeof(m->noted) / sizeof(m->noted[0]); i++) {
        struct noted *n = &m->noted[i];
        bool is_fresh = n->host[0] != '\0' && now_ms - n->at_ms < NOTED_MS;
        if (is_fresh && n->kind == kind && strcmp(n->host, host) == 0)
            return false;
        if (n->host[0] == '\0' || (oldest->host[0] != '\0' && n->at_ms < oldest->at_ms))
            oldest = n;
    }
    if (oldest->host[0] != '\0' && now_ms - oldest->at_ms < NOTED_MS)
        return false;
    *oldest = (struct noted){.kind = kind, .at_ms = now_ms};
    snprintf(oldest->host, sizeof(oldest->host), "%s", host[0] != '\0' ? host : "?");
    return true;
}

void strangers_note(struct mesh *m, const char *host, uint16_t port, enum mesh_refusal kind,
                    const char *detail)
{
    m->stats.n_refused++;
    m->stats.n_refused_of[kind]++;
    if (is_worth_a_line(m, host, kind))
        log_warn("mesh", "address=%s port=%u kind=%s refused: %s (not logged again for a minute)",
                 host, port, names[kind], detail);
}

void link_refuse(struct mesh_link *l, enum mesh_refusal kind, const char *fmt, ...)
{
    char text[ERROR_MESSAGE_BYTES];
    va_list args;
    if (l->phase == LINK_CLOSING)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    strangers_note(l->mesh, l->remote_host, l->remote_port, kind, text);
    l->is_refused = true;
    if (l->has_key)
        LINK_SEND(l, mesh_encode_refused, (uint8_t)kind);
    mesh_link_close(l, text);
}
