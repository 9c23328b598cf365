# libfoldswap.so needs libc alone, of an old version, exports what it interposes alone, and binds everything at start.
#   cmake -DREADELF=... -DLIBRARY=... -P check_elf.cmake
execute_process(COMMAND ${READELF} --wide --dynamic ${LIBRARY} OUTPUT_VARIABLE dynamic
  COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "Shared library: \\[[^]]*\\]" needed "${dynamic}")
list(FILTER needed EXCLUDE REGEX "\\[(libc|ld-linux[^]]*)\\.so")
if(needed)
  message(FATAL_ERROR "needs more than libc: ${needed}")
endif()
if(NOT dynamic MATCHES "BIND_NOW|NOW")
  message(FATAL_ERROR "is not bound at start")
endif()

execute_process(COMMAND ${READELF} --wide --dyn-syms ${LIBRARY} OUTPUT_VARIABLE symbols
  COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "(GLOBAL|WEAK) +DEFAULT +[0-9]+ [^\n]*" defined "${symbols}")
list(TRANSFORM defined REPLACE "^.* " "")
list(SORT defined)
set(wanted __clone __pthread_mutex_destroy __pthread_mutex_init __register_atfork capset chroot clone
  initgroups ioctl madvise mlock mlock2 mlockall mremap prctl pthread_create pthread_mutex_destroy
  pthread_mutex_init realloc reallocarray setegid seteuid setgid setgroups setns setregid setresgid
  setresuid setreuid setuid shmat syscall thrd_create unshare)
if(NOT "${defined}" STREQUAL "${wanted}")
  message(FATAL_ERROR "exports\n  ${defined}\ninstead of\n  ${wanted}")
endif()

# It loads wherever glibc is not older than this.
string(REGEX MATCHALL "[A-Za-z0-9_]+@GLIBC_2[.](1[89]|[2-9][0-9])[^\n]*" newer "${symbols}")
if(newer)
  message(FATAL_ERROR "needs symbols newer than GLIBC_2.17: ${newer}")
endif()
