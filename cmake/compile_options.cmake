# What every target of the project is compiled with.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

add_library(dtr_options INTERFACE)
target_compile_options(dtr_options INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-align
                                             -Woverloaded-virtual -Wnull-dereference -Wextra-semi)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 warns about moved-from optionals and strings inside its own library headers.
  target_compile_options(dtr_options INTERFACE -Wno-maybe-uninitialized -Wno-restrict -Wno-null-dereference)
endif()
if(DTR_WERROR)
  target_compile_options(dtr_options INTERFACE -Werror)
endif()
if(DTR_SANITIZE)
  add_compile_options(-fsanitize=${DTR_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${DTR_SANITIZE})
  if(DTR_SANITIZE STREQUAL "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # tsan does not see fences. Ours pair with sleeping and waking only; what threads share is ordered by locks and atomics.
    add_compile_options(-Wno-tsan)
  endif()
endif()
