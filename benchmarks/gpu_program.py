"""What `gpu_check` runs, inside a sandbox and outside: CUDA by ctypes, so that nothing has to be installed.

    gpu_program.py add        vector addition of a million floats, checked
    gpu_program.py product    seconds of a matrix product (2048 x 2048, one thread an element), checked in places
    gpu_program.py begin      seconds until there is a context
    gpu_program.py launch     microseconds of an empty launch, and of waiting for it: the median of a thousand
    gpu_program.py copy       GB/s to the device of 256 MiB that are not pinned
    gpu_program.py canary     leave a pattern all over the free memory
    gpu_program.py look       look for that pattern in fresh memory
    gpu_program.py spin       launch what never ends, say so, and wait for it
    gpu_program.py devices    how many devices CUDA shows

Kernels are PTX for sm_50 and newer, compiled by the driver. Source: CUDA Driver API; PTX ISA 6.0.
"""

import array
import ctypes
import statistics
import sys
import time

PTX = b"""
.version 6.0
.target sm_50
.address_size 64

.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p; .reg .f32 %f<4>; .reg .b32 %r<6>; .reg .b64 %d<8>;
    ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [c]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p, %r5, %r1;
    @%p bra DONE;
    mul.wide.u32 %d4, %r5, 4;
    add.s64 %d5, %d1, %d4; add.s64 %d6, %d2, %d4; add.s64 %d7, %d3, %d4;
    ld.global.f32 %f1, [%d5]; ld.global.f32 %f2, [%d6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%d7], %f3;
DONE:
    ret;
}

.visible .entry look(.param .u64 a, .param .u64 found, .param .u32 n)
{
    .reg .pred %p<3>; .reg .b32 %r<6>; .reg .b64 %d<6>;
    ld.param.u64 %d1, [a]; ld.param.u64 %d2, [found]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %d3, %r5, 8; add.s64 %d4, %d1, %d3;
    ld.global.u64 %d5, [%d4];
    setp.ne.u64 %p2, %d5, 0x5A5A5A5A5A5A5A5A;
    @%p2 bra DONE;
    red.global.add.u32 [%d2], 1;
DONE:
    ret;
}

.visible .entry spin(.param .u64 a)
{
    .reg .pred %p; .reg .b32 %r; .reg .b64 %d;
    ld.param.u64 %d, [a];
LOOP:
    ld.volatile.global.u32 %r, [%d];
    setp.eq.u32 %p, %r, 0;
    @%p bra LOOP;
    ret;
}

.visible .entry product(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<3>; .reg .f32 %f<4>; .reg .b32 %r<10>; .reg .b64 %d<10>;
    ld.param.u64 %d1, [a]; ld.param.u64 %d2, [b]; ld.param.u64 %d3, [c]; ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    mul.lo.u32 %r6, %r1, %r1;
    setp.ge.u32 %p1, %r5, %r6;
    @%p1 bra DONE;
    div.u32 %r7, %r5, %r1; rem.u32 %r8, %r5, %r1;
    mul.lo.u32 %r9, %r7, %r1;
    mul.wide.u32 %d4, %r9, 4; add.s64 %d5, %d1, %d4;
    mul.wide.u32 %d6, %r8, 4; add.s64 %d7, %d2, %d6;
    mul.wide.u32 %d8, %r1, 4;
    mov.f32 %f1, 0f00000000;
    mov.u32 %r9, 0;
LOOP:
    ld.global.f32 %f2, [%d5]; ld.global.f32 %f3, [%d7];
    fma.rn.f32 %f1, %f2, %f3, %f1;
    add.s64 %d5, %d5, 4; add.s64 %d7, %d7, %d8;
    add.u32 %r9, %r9, 1;
    setp.lt.u32 %p2, %r9, %r1;
    @%p2 bra LOOP;
    mul.wide.u32 %d9, %r5, 4; add.s64 %d9, %d3, %d9;
    st.global.f32 [%d9], %f1;
DONE:
    ret;
}
"""
PIECE = 64 << 20
COPIED = 256 << 20
CANARY = 0x5A


class Cuda:
    """The driver's library, with a context on the first device."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device, self.context = ctypes.c_int(), ctypes.c_void_p()
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuCtxCreate_v2", ctypes.byref(self.context), 0, device)
        self.module: ctypes.c_void_p | None = None

    def __call__(self, name: str, *arguments: object) -> None:
        """Call it, or end with its error."""
        if status := getattr(self.library, name)(*arguments):
            raise SystemExit(f"{name} failed with CUDA error {status}")

    def allocate(self, size: int) -> "ctypes.c_uint64 | None":
        """Memory of the device; None where there is no more."""
        at = ctypes.c_uint64()
        return at if self.library.cuMemAlloc_v2(ctypes.byref(at), ctypes.c_size_t(size)) == 0 else None

    def put(self, values: "array.array[float]") -> "ctypes.c_uint64":
        """Floats on the device."""
        raw = values.tobytes()
        at = self.allocate(len(raw))
        assert at is not None
        self("cuMemcpyHtoD_v2", at, raw, ctypes.c_size_t(len(raw)))
        return at

    def get(self, at: "ctypes.c_uint64", count: int) -> "array.array[float]":
        """Floats of the device."""
        raw = ctypes.create_string_buffer(4 * count)
        self("cuMemcpyDtoH_v2", raw, at, ctypes.c_size_t(4 * count))
        return array.array("f", raw.raw)

    def launch(self, name: str, threads: int, *arguments: object) -> None:
        """Run a kernel, and wait for it."""
        self.begin(name, threads, *arguments)
        self("cuCtxSynchronize")

    def begin(self, name: str, threads: int, *arguments: object) -> None:
        """Run a kernel."""
        if self.module is None:
            self.module = ctypes.c_void_p()
            self("cuModuleLoadData", ctypes.byref(self.module), PTX)
        function = ctypes.c_void_p()
        self("cuModuleGetFunction", ctypes.byref(function), self.module, name.encode())
        given = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))  # type: ignore[arg-type]
        self("cuLaunchKernel", function, -(-threads // 256), 1, 1, 256, 1, 1, 0, None, given, None)


def add() -> str:
    """A million sums."""
    cuda, count = Cuda(), 1 << 20
    a, b = (array.array("f", (float(i * k % 1000) for i in range(count))) for k in (1, 3))
    at_a, at_b, at_c = cuda.put(a), cuda.put(b), cuda.allocate(4 * count)
    assert at_c is not None
    cuda.launch("add", count, at_a, at_b, at_c, ctypes.c_uint32(count))
    if any(x + y != z for x, y, z in zip(a, b, cuda.get(at_c, count), strict=True)):
        raise SystemExit("wrong sums")
    return "right"


def product() -> str:
    """Seconds of the second of two products: the first compiles and warms up."""
    cuda, n = Cuda(), 2048
    a, b = (array.array("f", (float(i * k % 7) for i in range(n * n))) for k in (1, 5))
    at_a, at_b, at_c = cuda.put(a), cuda.put(b), cuda.allocate(4 * n * n)
    assert at_c is not None
    for _ in range(2):
        began = time.perf_counter()
        cuda.launch("product", n * n, at_a, at_b, at_c, ctypes.c_uint32(n))
        took = time.perf_counter() - began
    found = cuda.get(at_c, n * n)
    for row, column in ((0, 0), (1, n - 1), (n - 1, 17)):
        if found[row * n + column] != sum(a[row * n + k] * b[k * n + column] for k in range(n)):
            raise SystemExit(f"a wrong product at {row}, {column}")
    return f"{took:.4f}"


def canary() -> str:
    """MiB that hold the pattern now."""
    cuda, count = Cuda(), 0
    while (at := cuda.allocate(PIECE)) is not None:
        cuda("cuMemsetD8_v2", at, ctypes.c_ubyte(CANARY), ctypes.c_size_t(PIECE))
        count += PIECE >> 20
    cuda("cuCtxSynchronize")
    return str(count)


def look() -> str:
    """MiB of fresh memory that hold the pattern: 64-bit words of it are counted, wherever they lie."""
    cuda, words, looked = Cuda(), 0, 0
    while (at := cuda.allocate(PIECE)) is not None:
        count = cuda.put(array.array("f", [0.0]))
        cuda.launch("look", PIECE // 8, at, count, ctypes.c_uint32(PIECE // 8))
        words += int.from_bytes(cuda.get(count, 1).tobytes(), "little")
        looked += 1
    if not looked:
        raise SystemExit("there was no memory to look at")
    return str(-(-words * 8 // (1 << 20)))


def begin() -> str:
    """Seconds of loading the library, finding the device and making a context."""
    began = time.perf_counter()
    Cuda()
    return f"{time.perf_counter() - began:.4f}"


def launch() -> str:
    """Microseconds of one that does nothing."""
    cuda, took = Cuda(), []
    at = cuda.put(array.array("f", [0.0]))
    for _ in range(1000):
        began = time.perf_counter()
        cuda.launch("add", 1, at, at, at, ctypes.c_uint32(0))
        took.append(time.perf_counter() - began)
    return f"{statistics.median(took) * 1e6:.2f}"


def copy() -> str:
    """GB/s, the best of five: the first touches its pages."""
    cuda, raw, best = Cuda(), ctypes.create_string_buffer(COPIED), 0.0
    at = cuda.allocate(COPIED)
    assert at is not None
    for _ in range(5):
        began = time.perf_counter()
        cuda("cuMemcpyHtoD_v2", at, raw, ctypes.c_size_t(COPIED))
        best = max(best, COPIED / 1e9 / (time.perf_counter() - began))
    return f"{best:.2f}"


def spin() -> str:
    """Never comes back."""
    cuda = Cuda()
    at = cuda.put(array.array("f", [0.0]))
    cuda.begin("spin", 1, at)
    print("spinning", flush=True)
    cuda("cuCtxSynchronize")
    return "it ended"


def devices() -> str:
    """How many CUDA shows."""
    cuda, count = Cuda(), ctypes.c_int()
    cuda("cuDeviceGetCount", ctypes.byref(count))
    return str(count.value)


ALL = {each.__name__: each for each in (add, product, begin, launch, copy, canary, look, spin, devices)}

if __name__ == "__main__":
    print(ALL[sys.argv[1]]())
