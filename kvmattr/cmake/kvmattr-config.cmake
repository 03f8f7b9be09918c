# find_package(kvmattr): the target kvmattr::kvmattr, the headers of kvmattr's C and C++ interface. There is nothing to
# link: kvmattr_import() finds the library at run time. The file that calls it needs Python's headers too.
#
#     execute_process(COMMAND ${Python_EXECUTABLE} -m kvmattr --cmakedir OUTPUT_VARIABLE kvmattr_DIR
#                     OUTPUT_STRIP_TRAILING_WHITESPACE)
#     find_package(kvmattr REQUIRED CONFIG)
#     target_link_libraries(mine PRIVATE kvmattr::kvmattr Python::Module)
get_filename_component(kvmattr_INCLUDE_DIR "${CMAKE_CURRENT_LIST_DIR}/../include" ABSOLUTE)
if(NOT TARGET kvmattr::kvmattr)
  add_library(kvmattr::kvmattr INTERFACE IMPORTED)
  set_target_properties(kvmattr::kvmattr PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kvmattr_INCLUDE_DIR}")
endif()
