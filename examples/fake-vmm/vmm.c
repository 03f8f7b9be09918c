/* A virtual machine monitor of two hundred lines, as far as memory goes: a guest whose pages are private or shared.
 *
 * Memory is one guest_memfd for the private side of each page and one mapping for the shared side. The guest asks for
 * conversions, by the hypercall KVM_HC_MAP_GPA_RANGE or by touching a page the other way (KVM_EXIT_MEMORY_FAULT); this
 * program does them, on kernels whose attributes belong to the VM and on those where they belong to the file.
 *
 *     vmm [MEGABYTES]      exit code 0 after the guest's HLT, 1 after anything else
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* What <linux/kvm.h> of older systems does not have. */
enum {
    KVMIO = 0xAE, PAGE = 4096,
    CAP_EXIT_HYPERCALL = 201, CAP_MEMORY_ATTRIBUTES = 233, CAP_GUEST_MEMFD = 234, CAP_FILE_ATTRIBUTES = 252,
    SW_PROTECTED_VM = 1, SLOT_GUEST_MEMFD = 4, ATTRIBUTE_PRIVATE = 8,
    EXIT_HYPERCALL = 3, EXIT_HLT = 5, EXIT_MMIO = 6, EXIT_SHUTDOWN = 8, EXIT_MEMORY_FAULT = 39,
    HC_MAP_GPA_RANGE = 12, MAP_ENCRYPTED = 1 << 4, FAULT_PRIVATE = 1 << 3,
};

struct region {
    uint32_t slot, flags;
    uint64_t guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
    uint32_t guest_memfd, pad1;
    uint64_t pad2[14];
};

struct create_guest_memfd { uint64_t size, flags, reserved[6]; };
struct attributes { uint64_t address, size, attributes, flags; };
struct file_attributes { uint64_t offset, size, attributes, flags, error_offset, reserved[11]; };
struct enable_cap { uint32_t cap, flags; uint64_t args[4]; uint8_t pad[64]; };

struct run {
    uint8_t request_interrupt_window, immediate_exit, padding1[6];
    uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection, if_flag;
    uint16_t flags;
    uint64_t cr8, apic_base;
    union {
        struct { uint64_t phys_addr; uint8_t data[8]; uint32_t len; uint8_t is_write; } mmio;
        struct { uint64_t nr, args[6], ret, flags; } hypercall;
        struct { uint64_t flags, gpa, size; } memory_fault;
        char padding[256];
    };
};

#define KVM_CREATE_VM _IO(KVMIO, 0x01)
#define KVM_CHECK_EXTENSION _IO(KVMIO, 0x03)
#define KVM_GET_VCPU_MMAP_SIZE _IO(KVMIO, 0x04)
#define KVM_CREATE_VCPU _IO(KVMIO, 0x41)
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct region)
#define KVM_RUN _IO(KVMIO, 0x80)
#define KVM_ENABLE_CAP _IOW(KVMIO, 0xa3, struct enable_cap)
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attributes)
#define KVM_SET_MEMORY_ATTRIBUTES2 _IOWR(KVMIO, 0xd2, struct file_attributes)
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct create_guest_memfd)

struct machine {
    int vm, vcpu, memory; /* memory: the guest_memfd */
    int attributes_of_file;
    uint64_t size;
    char *shared; /* the shared side of each page */
    struct run *run;
};

static int failed(const char *what)
{
    perror(what);
    return -1;
}

static int create(struct machine *machine, uint64_t size)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        return failed("/dev/kvm");
    machine->vm = ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM);
    int mapped = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    close(kvm);
    if (machine->vm < 0)
        return failed("KVM_CREATE_VM");
    machine->attributes_of_file = ioctl(machine->vm, KVM_CHECK_EXTENSION, CAP_FILE_ATTRIBUTES) > 0;
    if (!machine->attributes_of_file && !(ioctl(machine->vm, KVM_CHECK_EXTENSION, CAP_MEMORY_ATTRIBUTES) & 8))
        return errno = EOPNOTSUPP, failed("no private memory");

    machine->size = size;
    struct create_guest_memfd file = {.size = size};
    machine->memory = ioctl(machine->vm, KVM_CREATE_GUEST_MEMFD, &file);
    if (machine->memory < 0)
        return failed("KVM_CREATE_GUEST_MEMFD");
    machine->shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (machine->shared == MAP_FAILED)
        return failed("mmap");
    struct region region = {.flags = SLOT_GUEST_MEMFD, .memory_size = size,
                            .userspace_addr = (uintptr_t)machine->shared, .guest_memfd = machine->memory};
    if (ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION2, &region) < 0)
        return failed("KVM_SET_USER_MEMORY_REGION2");

    struct enable_cap hypercalls = {.cap = CAP_EXIT_HYPERCALL, .args = {1 << HC_MAP_GPA_RANGE}};
    if (ioctl(machine->vm, KVM_ENABLE_CAP, &hypercalls) < 0)
        return failed("KVM_CAP_EXIT_HYPERCALL");
    machine->vcpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0);
    if (machine->vcpu < 0)
        return failed("KVM_CREATE_VCPU");
    machine->run = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, machine->vcpu, 0);
    return machine->run == MAP_FAILED ? failed("mmap of the vCPU") : 0;
}

/* Make pages private or shared, and give back the side that they are no longer on. */
static int convert(struct machine *machine, uint64_t gpa, uint64_t size, int private)
{
    if ((gpa | size) % PAGE || !size || gpa > machine->size || size > machine->size - gpa)
        return errno = EINVAL, -1;
    int result;
    if (machine->attributes_of_file) {
        /* The only slot begins at 0, and so does the file in it. */
        struct file_attributes change = {.offset = gpa, .size = size, .attributes = private ? ATTRIBUTE_PRIVATE : 0};
        do
            result = ioctl(machine->memory, KVM_SET_MEMORY_ATTRIBUTES2, &change);
        while (result < 0 && errno == EAGAIN);
    } else {
        struct attributes change = {.address = gpa, .size = size, .attributes = private ? ATTRIBUTE_PRIVATE : 0};
        result = ioctl(machine->vm, KVM_SET_MEMORY_ATTRIBUTES, &change);
    }
    if (result < 0)
        return -1;
    printf("%s [%#llx, %#llx)\n", private ? "private" : "shared", (unsigned long long)gpa,
           (unsigned long long)(gpa + size));
    if (private)
        return madvise(machine->shared + gpa, size, MADV_DONTNEED);
    return fallocate(machine->memory, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, gpa, size);
}

/* Answer one exit: 1 to go on, 0 after HLT, -1 with errno. */
static int handle(struct machine *machine, int result)
{
    struct run *run = machine->run;
    if (result < 0 && errno == EINTR)
        return 1;
    if (result < 0 && (errno != EFAULT || run->exit_reason != EXIT_MEMORY_FAULT))
        return -1;
    switch (run->exit_reason) {
    case EXIT_MEMORY_FAULT:
        return convert(machine, run->memory_fault.gpa, run->memory_fault.size,
                       !!(run->memory_fault.flags & FAULT_PRIVATE)) < 0 ? -1 : 1;
    case EXIT_HYPERCALL:
        if (run->hypercall.nr != HC_MAP_GPA_RANGE)
            return errno = ENOSYS, -1;
        /* A range that cannot be converted is the guest's mistake: it gets the error. */
        result = convert(machine, run->hypercall.args[0], run->hypercall.args[1] * PAGE,
                         !!(run->hypercall.args[2] & MAP_ENCRYPTED));
        run->hypercall.ret = result < 0 ? (uint64_t)-errno : 0;
        return 1;
    case EXIT_MMIO:
        printf("mmio %s %#llx\n", run->mmio.is_write ? "write" : "read", (unsigned long long)run->mmio.phys_addr);
        return 1;
    case EXIT_HLT:
        return 0;
    default:
        errno = EPROTO;
        return -1;
    }
}

int main(int count, char **words)
{
    struct machine machine = {0};
    uint64_t megabytes = count > 1 ? strtoull(words[1], NULL, 0) : 16;
    if (create(&machine, megabytes << 20) < 0)
        return 1;
    int going;
    do
        going = handle(&machine, ioctl(machine.vcpu, KVM_RUN, 0));
    while (going > 0);
    if (going < 0) {
        fprintf(stderr, "KVM_RUN: %s, exit reason %u\n", strerror(errno), machine.run->exit_reason);
        return 1;
    }
    puts("halted");
    return 0;
}
