/* Linux: what kind of network interfaces there are. */
#ifdef __linux__
#include "device/linux_files.h"

#include <stdio.h>
#include <string.h>

enum { ARPHRD_OF_ETHERNET = 1, ARPHRD_OF_INFINIBAND = 32, ARPHRD_OF_LOOPBACK = 772 };

static enum device_link_kind find_kind(const char *root, const char *name)
{
    int64_t type = -1;
    char uevent[1024], value[64], driver[1024];
    sys_read_number(root, &type, "/sys/class/net/%s/type", name);
    sys_read(root, uevent, sizeof(uevent), "/sys/class/net/%s/uevent", name);
    sys_read(root, driver, sizeof(driver), "/sys/class/net/%s/device/uevent", name);
    if (type == ARPHRD_OF_LOOPBACK)
        return DEVICE_LINK_LOOPBACK;
    if (sys_exists(root, "/sys/class/net/%s/wireless", name) ||
        sys_exists(root, "/sys/class/net/%s/phy80211", name) ||
        (sys_find_line(uevent, "DEVTYPE=", value, sizeof(value)) && strcmp(value, "wlan") == 0))
        return DEVICE_LINK_WIFI;
    if (type == ARPHRD_OF_INFINIBAND)
        return DEVICE_LINK_INFINIBAND;
    if (strncmp(name, "thunderbolt", 11) == 0 ||
        (sys_find_line(driver, "DRIVER=", value, sizeof(value)) &&
         strncmp(value, "thunderbolt", 11) == 0))
        return DEVICE_LINK_THUNDERBOLT;
    if (!sys_exists(root, "/sys/class/net/%s/device", name))
        return type >= 0 ? DEVICE_LINK_VIRTUAL : DEVICE_LINK_UNKNOWN;
    return type == ARPHRD_OF_ETHERNET ? DEVICE_LINK_ETHERNET : DEVICE_LINK_UNKNOWN;
}

uint32_t linux_get_links(const char *root, struct device_link links[DEVICE_LINKS_MAX])
{
    struct sys_names names;
    uint32_t n = 0;
    sys_list(root, &names, "/sys/class/net");
    for (uint32_t i = 0; i < names.n && n < DEVICE_LINKS_MAX; i++) {
        const char *name = names.name[i];
        char state[32];
        int64_t mbit = 0;
        if (strlen(name) >= sizeof(links[0].name) ||
            !sys_exists(root, "/sys/class/net/%s/type", name))
            continue; /* such as the file bonding_masters */
        struct device_link *l = &links[n++];
        memset(l, 0, sizeof(*l));
        sys_copy_text(l->name, sizeof(l->name), name);
        l->kind = find_kind(root, name);
        sys_read(root, state, sizeof(state), "/sys/class/net/%s/operstate", name);
        l->is_up = strcmp(state, "up") == 0 ||
                   (l->kind == DEVICE_LINK_LOOPBACK && strcmp(state, "unknown") == 0);
        /* -1 while it is down, nonsense on some virtual ones. */
        if (sys_read_number(root, &mbit, "/sys/class/net/%s/speed", name) && mbit > 0 &&
            mbit <= 10000000)
            l->mbit_s = (uint32_t)mbit;
    }
    return n;
}
#endif
