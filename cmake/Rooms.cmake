# A room is a folder whose headers others may include only if their library links it. All includes are written from
# the root of the tree ("daemon/state/state.h"), but the root is on no room's include path: room_NAME brings a folder
# of the build tree in which nothing but that room's folder is found, by a link. So a room sees what it links, and an
# include against the table of docs/ARCHITECTURE.md does not compile (tests/house/rooms.py).
#
# foldswap_room(NAME FOLDER [HEADERS file...]): makes the interface library room_NAME. HEADERS: only these of the folder.
function(foldswap_room name folder)
  cmake_parse_arguments(arg "" "" "HEADERS" ${ARGN})
  set(view ${PROJECT_BINARY_DIR}/rooms/${name})
  if(arg_HEADERS)
    file(MAKE_DIRECTORY ${view}/${folder})
    foreach(header IN LISTS arg_HEADERS)
      file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${folder}/${header} ${view}/${folder}/${header} SYMBOLIC)
    endforeach()
  else()
    cmake_path(GET folder PARENT_PATH parent)
    file(MAKE_DIRECTORY ${view}/${parent})
    file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${folder} ${view}/${folder} SYMBOLIC)
  endif()
  add_library(room_${name} INTERFACE)
  target_include_directories(room_${name} INTERFACE ${view})
  # Debugging information names the files where they are.
  target_compile_options(room_${name} INTERFACE -ffile-prefix-map=${view}/=${PROJECT_SOURCE_DIR}/)
endfunction()

# foldswap_sources(VARIABLE target...): the sources of these libraries, for whoever builds them once more in another way.
function(foldswap_sources variable)
  set(sources)
  foreach(target IN LISTS ARGN)
    get_target_property(files ${target} SOURCES)
    get_target_property(directory ${target} SOURCE_DIR)
    foreach(file IN LISTS files)
      cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY ${directory})
      list(APPEND sources ${file})
    endforeach()
  endforeach()
  set(${variable} ${sources} PARENT_SCOPE)
endfunction()

# For what stands outside of all rooms and looks into each: simulator, benchmarks, crash points.
add_library(foldswap_tree INTERFACE)
target_include_directories(foldswap_tree INTERFACE ${PROJECT_SOURCE_DIR})
