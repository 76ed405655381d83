/* The engine on a GPU. Skipped where ggml finds none; SHOAL_TEST_GPU names the one to use. */
#include "on_device.h"

static bool find_gpu(void)
{
    struct engine_device device[ENGINE_DEVICES_MAX];
    const char *wanted = getenv("SHOAL_TEST_GPU");
    uint32_t n = engine_devices(device, ENGINE_DEVICES_MAX);
    for (uint32_t i = 1; i < n && gpu[0] == '\0'; i++)
        if (wanted == NULL || strcmp(wanted, device[i].name) == 0)
            snprintf(gpu, sizeof(gpu), "%s", device[i].name);
    return gpu[0] != '\0';
}

int main(void)
{
    if (!find_gpu()) {
        puts("skipped: ggml finds no GPU here (`make test-vulkan` brings one in software)");
        return 77;
    }
    return test_on_device();
}
