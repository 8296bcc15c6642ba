# What runs at CPL0: the entry and the exception stubs, and the tables that the CPU reads.
#
# On a KVM without hardware virtualisation beneath it, CPL0 code is emulated, slowly and without most of the
# instruction set; CPL3 code runs natively. So nothing here but what only CPL0 can do. The image's tests
# disassemble this section and allow only the instructions that it has now.
#
# Exceptions at CPL3 end the guest: the stub notes what happened, then returns to CPL3, to a function that
# prints it. An exception at CPL0, or a second one, ends the machine at once.

.set END_PORT, 0x4c58          # 8-bit write: the machine ends with this status
.set USER_CS, 0x33
.set USER_SS, 0x2b
.set IMAGE_START, 0x100000

# Page-table entry bits. Accessed and dirty are set from the start, so the CPU never writes to the tables:
# what it would write, and when, is its own affair and no function of the guest's inputs.
.set PRESENT, 1
.set WRITE, 2
.set USER, 4
.set UNCACHED, 0x18
.set ACCESSED, 0x20
.set DIRTY, 0x40
.set LARGE, 0x80
.set TABLE, PRESENT | WRITE | USER | ACCESSED
.set RAM, PRESENT | WRITE | USER | ACCESSED | DIRTY
.set CODE, PRESENT | USER | ACCESSED | DIRTY
.set SUPERVISOR, PRESENT | WRITE | ACCESSED | DIRTY

.section .text.cpl0, "ax", @progbits

# Vector n at IMAGE_START + 16 n, as the interrupt descriptors below have it. Those without an error code of
# their own push 0, so that all frames are alike.
.macro stub vector
    .balign 16
    .if (0x60227d00 >> \vector) & 1     # 8, 10 to 14, 17, 21, 29, 30
    .else
    push 0
    .endif
    push \vector
    jmp exception
.endm
.altmacro
.macro stubs
    .set vector, 0
    .rept 32
    stub %vector
    .set vector, vector + 1
    .endr
.endm
stubs

# Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS.
.balign 16
exception:
    cmp dword ptr [rsp + 24], USER_CS
    jne die
    cmp dword ptr [reporting], 0
    jne die
    mov dword ptr [reporting], 1
    mov rdi, offset EXCEPTION_RECORD
    mov rax, [rsp]
    mov [rdi], rax
    mov rax, [rsp + 8]
    mov [rdi + 8], rax
    mov rax, [rsp + 16]
    mov [rdi + 16], rax
    mov rax, [rsp + 40]
    mov [rdi + 24], rax
    mov rax, cr2
    mov [rdi + 32], rax
    mov rax, offset exception_entry
    mov [rsp + 16], rax
    mov rax, offset EXCEPTION_STACK_TOP
    mov [rsp + 40], rax
    add rsp, 16
    iretq

die:
    mov eax, [rsp]
    or eax, 0x80
end:
    mov edx, END_PORT
    out dx, al
halt:
    cli
    hlt
    jmp halt

# Entered as by the Linux 64-bit boot protocol: long mode, identity map, RSI = boot_params.
.globl _start
_start:
    cli
    cld
    mov rsp, offset cpl0_stack_top
    # The end of RAM: of the usable e820 entry that holds 1 MiB.
    movzx ecx, byte ptr [rsi + 0x1e8]
    lea rbx, [rsi + 0x2d0]
next_entry:
    test ecx, ecx
    je no_memory
    mov rax, [rbx]
    mov rdx, [rbx + 8]
    cmp dword ptr [rbx + 16], 1
    jne skip_entry
    cmp rax, IMAGE_START
    ja skip_entry
    add rax, rdx
    cmp rax, IMAGE_START
    ja found
skip_entry:
    add rbx, 20
    dec ecx
    jmp next_entry
no_memory:
    mov eax, 0x7f
    jmp end
found:
    mov ebx, 0xc0000000
    cmp rax, rbx
    jbe below_3g
    mov rax, rbx
below_3g:
    and rax, -0x200000
    mov r8, rax
    # All of RAM from 4 MiB on, in 2 MiB pages that CPL3 may use.
    mov rdi, offset page_directories + 16
    mov edx, 0x400000 + RAM + LARGE
map_ram:
    cmp rdx, rax
    jae mapped
    mov [rdi], rdx
    add rdi, 8
    add rdx, 0x200000
    jmp map_ram
mapped:
    mov rax, offset pml4
    mov cr3, rax
    lgdt [gdt_pointer]
    lidt [idt_pointer]
    mov eax, USER_SS
    mov ds, eax
    mov es, eax
    mov eax, 0x40
    ltr ax
    # SSE: CR0.EM and TS clear, MP and NE set; CR4.OSFXSR and OSXMMEXCPT set.
    mov rax, cr0
    and eax, -13
    or eax, 0x22
    mov cr0, rax
    mov rax, cr4
    or eax, 0x600
    mov cr4, rax
    # To CPL3: RDI = boot_params, RSI = end of RAM.
    mov rdi, rsi
    mov rsi, r8
    push USER_SS
    mov rax, offset MAIN_STACK_TOP
    push rax
    push 2
    push USER_CS
    mov rax, offset user_entry
    push rax
    iretq

.section .data.cpl0, "aw", @progbits

# 0x102000: the TSS, with an I/O bitmap that opens every port to CPL3.
tss:
    .long 0
    .quad cpl0_stack_top       # RSP0
    .fill 90, 1, 0
    .word 104                  # I/O map base
    .fill 8192, 1, 0
    .byte 0xff
.set TSS_LIMIT, 104 + 8192
.balign 16

.balign 4096
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff   # 0x10 CPL0 code
    .quad 0x00cf93000000ffff   # 0x18 CPL0 data
    .quad 0
    .quad 0x00cff3000000ffff   # 0x28 CPL3 data
    .quad 0x00affb000000ffff   # 0x30 CPL3 code
    .quad 0
    .quad 0x0000890000000000 + (0x102000 << 16) + TSS_LIMIT     # 0x40 TSS at 0x102000
    .quad 0
gdt_end:
.balign 16
idt:
    .set vector, 0
    .rept 32
    .word (IMAGE_START + 16 * vector) & 0xffff
    .word 0x10
    .word 0x8e00
    .word IMAGE_START >> 16
    .quad 0
    .set vector, vector + 1
    .endr
idt_end:
.balign 16
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
.balign 16
idt_pointer:
    .word idt_end - idt - 1
    .quad idt
.balign 8
reporting:
    .long 0

.balign 4096
pml4:
    .quad page_directory_pointers + TABLE
    .fill 511, 8, 0
page_directory_pointers:
    .quad page_directories + TABLE
    .quad page_directories + 4096 + TABLE
    .quad page_directories + 8192 + TABLE
    .quad page_directories + 12288 + TABLE
    .fill 508, 8, 0
# 4 GiB. The entry maps RAM from 4 MiB on; the virtio-mmio windows are at 0xd0000000.
page_directories:
    .quad first_pages + TABLE
    .quad 0x200000 + CODE + LARGE
    .fill 510, 8, 0
    .fill 1024, 8, 0
    .fill 128, 8, 0
    .quad 0xd0000000 + RAM + LARGE + UNCACHED
    .fill 383, 8, 0
# The first 2 MiB: nothing at 0; boot_params and the command line, to be read; from 1 MiB on, CPL0's.
first_pages:
    .quad 0
    .set page, 0x1000
    .rept 255
    .quad page + CODE
    .set page, page + 0x1000
    .endr
    .rept 256
    .quad page + SUPERVISOR
    .set page, page + 0x1000
    .endr

.balign 16
    .fill 4096, 1, 0
cpl0_stack_top:

.text
user_entry:
    call main
exception_entry:
    call exception_report
