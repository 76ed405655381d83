/* What the engine does on a device, with the processors in the role of one. */
#include "on_device.h"

int main(void)
{
    snprintf(gpu, sizeof(gpu), "cpu-as-device");
    gpu_shown = "CPU";
    return test_on_device();
}
