/* Who may do what: API keys where there are any, and otherwise this machine's own users. Source:
 * RFC 6750, section 2.1 (Bearer); x-api-key is Anthropic's. */
#include "api/api_internal.h"
#include "base/clock.h"

#include <string.h>
#include <strings.h>

/* Clients of Anthropic send either field, some both: one of them must be good. */
static struct api_key *find_key(const struct api_keys *keys, const struct http_request *q,
                                bool *ret_is_given)
{
    static const char scheme[] = "bearer ";
    const char *bearer = http_request_header(q, "authorization");
    const char *plain = http_request_header(q, "x-api-key");
    struct api_key *key = NULL;
    *ret_is_given = bearer != NULL || plain != NULL;
    if (bearer != NULL && strncasecmp(bearer, scheme, sizeof(scheme) - 1) == 0) {
        bearer += sizeof(scheme) - 1;
        bearer += strspn(bearer, " ");
        key = api_keys_find(keys, bearer, strlen(bearer));
    }
    if (key == NULL && plain != NULL)
        key = api_keys_find(keys, plain, strlen(plain));
    return key;
}

static int refuse_unknown(struct http_response *r, bool is_given, struct api_error *e)
{
    http_response_header(r, "www-authenticate", "Bearer");
    return api_error_set(e, 401, "invalid_api_key", NULL, "%s",
                         is_given ? "The API key is not known to this server."
                                  : "This server wants an API key: in the field 'Authorization: "
                                    "Bearer KEY' or in 'x-api-key'.");
}

int access_check(struct api *a, const struct http_request *q, struct http_response *r,
                 unsigned scopes, bool is_inference, struct api_error *e)
{
    bool is_given;
    if (a->keys == NULL)
        return 0;
    struct api_key *key = find_key(a->keys, q, &is_given);
    if (key == NULL)
        return refuse_unknown(r, is_given, e);
    http_response_set_user(r, key);
    http_response_note(r, "key=%s", key->name);
    if (!api_key_may(key, scopes))
        return api_error_set(e, 403, "insufficient_permissions", NULL,
                             "The API key '%s' may not do this: it needs the scope %s.", key->name,
                             (scopes & API_SCOPE_INFERENCE) != 0 ? "'inference'"
                             : (scopes & API_SCOPE_READ) != 0    ? "'read'"
                                                                 : "'admin'");
    uint32_t wait_s = api_key_take_request(key, is_inference, clock_now_ns());
    if (wait_s == 0)
        return 0;
    api_error_set(e, 429, "rate_limit_exceeded", NULL,
                  "The API key '%s' has used up its requests or tokens of this minute; try again "
                  "in %u s.",
                  key->name, wait_s);
    e->retry_s = wait_s;
    return -1;
}

bool access_may_order(const struct http_request *q, const struct http_response *r)
{
    const struct api_key *key = http_response_user(r);
    if (key != NULL)
        return api_key_may(key, API_SCOPE_ADMIN);
    return http_response_is_peer_loopback(r) &&
           (q->host[0] == '\0' || cors_is_loopback_name(q->host));
}
