/*
 * An add-on for Node: `process.dlopen(module, "/.isobox/reseed")` has OpenSSL's generator take new entropy from the
 * kernel, and leaves 1 in module.exports, or 0 where there is no such generator.  In a copy of a sandbox it would go
 * on with its original's numbers, and Node has no call of its own for that.
 *
 * It takes all it calls from the program that loads it, the C library too: so it fits glibc and musl.
 */
#include <stdint.h>

extern int RAND_poll(void) __attribute__((weak));
extern int napi_create_int32(void *env, int32_t value, void **result) __attribute__((weak));

__attribute__((visibility("default"))) void *napi_register_module_v1(void *env, void *exports)
{
	void *done = exports;
	int32_t polled = RAND_poll ? RAND_poll() : 0;
	if (napi_create_int32)
		napi_create_int32(env, polled, &done);
	return done;
}
