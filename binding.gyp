{
  "variables": {
    # Set to the sanitizers' names to build with them, and then with the C++ runtime that they need.
    "sanitize%": ""
  },
  "target_defaults": {
    "defines": ["NAPI_VERSION=8", "NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED"],
    "cflags": [
      # Not under our warnings, which are errors.
      "-isystem ../<!(node -p \"require('node-addon-api').include_dir\")",
      "-Wall",
      "-Wextra",
      "-Wshadow",
      "-Wconversion",
      "-Wno-unused-parameter",
      "-Werror"
    ],
    "cflags_cc!": ["-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["-std=c++20", "-fno-exceptions", "-fno-rtti"]
  },
  "targets": [
    {
      "target_name": "overlayfs",
      "conditions": [
        ["OS!='linux'", {"type": "none"}, {
          "sources": [
            "native/addon.cc",
            "native/beneath.cc",
            "native/calls.cc",
            "native/child.cc",
            "native/executor.cc",
            "native/guards.cc",
            "native/hash.cc",
            "native/holders.cc",
            "native/in_use.cc",
            "native/known_mounts.cc",
            "native/mount_table.cc",
            "native/operation.cc",
            "native/read_files.cc",
            "native/remove.cc",
            "native/resemble.cc",
            "native/reservations.cc",
            "native/undo.cc",
            "native/user_namespaces.cc",
            "native/walk.cc",
            "native/whiteouts.cc",
            "native/write.cc"
          ],
          "cflags": ["-fvisibility=hidden"],
          # Node unloads an addon with the last worker that loaded it; our parked threads would be left
          # without their code.
          "ldflags": ["-Wl,-z,nodelete,-z,relro,-z,now"],
          "conditions": [
            ["sanitize==''", {
              # No library by name: one binary for glibc and musl.
              "sources": ["native/runtime.cc"],
              "cflags!": ["-O3"],
              "cflags": [
                "-O2",
                "-ffunction-sections",
                "-fdata-sections",
                "-fno-stack-protector",
                "-U_FORTIFY_SOURCE"
              ],
              "cflags_cc": ["-fno-threadsafe-statics", "-D_GLIBCXX_EXTERN_TEMPLATE=0"],
              # Outline atomics are functions of libgcc, which is not linked.
              "conditions": [["target_arch=='arm64'", {"cflags": ["-mno-outline-atomics"]}]],
              "ldflags": [
                "-nostdlib",
                "-Wl,--gc-sections",
                "-Wl,--version-script=<(module_root_dir)/native/exports.map"
              ]
            }, {
              "cflags": ["-fsanitize=<(sanitize)", "-fno-omit-frame-pointer", "-g"],
              "ldflags": ["-fsanitize=<(sanitize)"]
            }]
          ]
        }]
      ]
    },
    {
      # Ships beside the addon. A static program of a few kB, without any library.
      "target_name": "overlayfs-launch",
      "conditions": [
        ["OS!='linux'", {"type": "none"}, {
          "type": "executable",
          "product_dir": "<(PRODUCT_DIR)/launch",
          "sources": ["native/launch.cc"],
          "cflags!": ["-O3", "-pthread", "-fno-omit-frame-pointer"],
          "cflags": ["-Os", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-pic"],
          "ldflags!": ["-pthread", "-rdynamic"],
          "ldflags": ["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,-z,noseparate-code,-z,norelro,-s"]
        }]
      ]
    },
    {
      # Not packed: puts a test process into a mount namespace of its own.
      "target_name": "test_support",
      "conditions": [
        ["OS!='linux'", {"type": "none"}, {"sources": ["test/support/native.cc"]}]
      ]
    }
  ]
}
