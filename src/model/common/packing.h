// Ways to pack the values of a frozen matrix in few bits: those of llama.cpp's GGUF files, by their names there.
#pragma once

namespace vmoba::model {

enum class Packing { kQ8_0, kQ4_K, kQ5_K, kQ6_K };

}  // namespace vmoba::model
