// The code that brings an agent into a process that runs already (docs/LATE_AGENT.md). A tracer
// points a thread here, and the thread starts the agent with clone(2); then it goes on where it
// was. It completes by itself, so that the tracer may die at any moment: whatever it uses it saves
// first and loads again, it touches no stack and no flag, and it has all signals blocked while
// there may be two of it.
//
// foldswap_gadget_call: for a thread that was stopped in a system call that is to be made again.
//   rcx: where to go on (the system call instruction); r11: rax to go on with. The kernel destroys
//   both in any system call, so nobody misses them.
// foldswap_gadget_user: for one that was stopped in the program's own code. gs base: where to go
// on; it was 0.
//
// While foldswap_alone is not 0, or an agent is on the boot stack, nothing happens. One thread at a
// time: the slots are there once.
//
// What the daemon needs to know of it is a note of the ELF file, of the name "foldswap" and type 1:
// its version, then where entry points and end are, each as a distance from the word that says so.
#include <sched.h>

asm(R"(
  .text
  .balign 64
  .globl foldswap_gadget_call, foldswap_gadget_user, foldswap_gadget_end
  .hidden foldswap_gadget_call, foldswap_gadget_user, foldswap_gadget_end
  .type foldswap_gadget_call, @function
  .type foldswap_gadget_user, @function
foldswap_gadget_user:
  movq %rcx, foldswap_slot+8(%rip)
  movq %r11, foldswap_slot+16(%rip)
  movq %rax, foldswap_slot+24(%rip)
  rdgsbase %rcx
  movq %rcx, foldswap_slot(%rip)
  movl $0, %ecx
  wrgsbase %rcx
  jmp 1f
foldswap_gadget_call:
  movq %rcx, foldswap_slot(%rip)
  movq %rcx, foldswap_slot+8(%rip)
  movq %r11, foldswap_slot+16(%rip)
  movq %r11, foldswap_slot+24(%rip)
1:
  movl foldswap_alone(%rip), %ecx
  jrcxz 2f
  jmp 9f
2:
  movl foldswap_boot_tid(%rip), %ecx    # one is there already, on the one stack that there is
  jrcxz 6f
  jmp 9f
6:
  movq %rdi, foldswap_slot+32(%rip)
  movq %rsi, foldswap_slot+40(%rip)
  movq %rdx, foldswap_slot+48(%rip)
  movq %r10, foldswap_slot+56(%rip)
  movq %r8, foldswap_slot+64(%rip)
  movl $14, %eax                        # rt_sigprocmask(SIG_SETMASK, all, &saved, 8)
  movl $2, %edi
  leaq foldswap_all_signals(%rip), %rsi
  leaq foldswap_saved_mask(%rip), %rdx
  movl $8, %r10d
  syscall
  movq %rax, %rcx
  jrcxz 3f
  jmp 4f
3:
  movl $56, %eax                        # clone(flags, stack, &tid, &tid, tls)
  movl $0x390d00, %edi
  leaq foldswap_boot_top(%rip), %rsi
  leaq foldswap_boot_tid(%rip), %rdx
  movq %rdx, %r10
  leaq foldswap_boot_tls(%rip), %r8
  syscall
  movq %rax, %rcx
  jrcxz 5f
  movl $14, %eax                        # rt_sigprocmask(SIG_SETMASK, &saved, 0, 8)
  movl $2, %edi
  leaq foldswap_saved_mask(%rip), %rsi
  movl $0, %edx
  movl $8, %r10d
  syscall
4:
  movq foldswap_slot+32(%rip), %rdi
  movq foldswap_slot+40(%rip), %rsi
  movq foldswap_slot+48(%rip), %rdx
  movq foldswap_slot+56(%rip), %r10
  movq foldswap_slot+64(%rip), %r8
9:
  movq foldswap_slot+8(%rip), %rcx
  movq foldswap_slot+16(%rip), %r11
  movq foldswap_slot+24(%rip), %rax
  jmp *foldswap_slot(%rip)
5:                                      # the agent
  xorl %ebp, %ebp
  call foldswap_arrive
  hlt
foldswap_gadget_end:

  .section .note.foldswap, "a", @note
  .balign 4
  .long 9, 16, 1                        # bytes of the name, bytes of what follows it, type
  .asciz "foldswap"
  .balign 4
  .long 1                               # version
  .long foldswap_gadget_call - .
  .long foldswap_gadget_user - .
  .long foldswap_gadget_end - .

  .data
  .balign 64
  .hidden foldswap_boot_tls, foldswap_all_signals
foldswap_boot_tls:                      # the System V ABI's thread block begins with its own address
  .quad foldswap_boot_tls
  .skip 120
foldswap_all_signals:
  .quad -1

  .bss
  .balign 64
  .globl foldswap_alone, foldswap_boot_tid
  .hidden foldswap_alone, foldswap_boot_tid
foldswap_slot:
  .skip 72
foldswap_saved_mask:
  .skip 8
foldswap_alone:
  .skip 4
foldswap_boot_tid:
  .skip 4
  .balign 64
  .skip 12288
foldswap_boot_top:
  .skip 64
  .text
)");

// The gadget's flags. FILES, because a copy of the table would hold the program's pipes open for a
// while; the agent gets a table of its own at once, with nothing in it.
static_assert((CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_FILES | CLONE_SETTLS |
               CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID) == 0x390d00);
