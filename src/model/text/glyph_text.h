// The letters that a prompt wants to see written, as HunyuanVideo 1.5 has them: what stands between quotation marks
// (Tencent-Hunyuan/HunyuanVideo-1.5 hyvideo/pipelines/hunyuan_video_pipeline.py, diffusers' extract_glyph_texts), as
// tokens of ByT5, which are bytes.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace vmoba::model {

// The pieces between "..." or “...”, from left to right, each once, none over a line feed.
std::vector<std::string> quoted_pieces(const std::string& prompt);

// `Text "piece". ` for each of them; "" where the prompt quotes nothing.
std::string glyph_text(const std::string& prompt);

// Bytes + 3, cut to `max_tokens` with the end token 1 behind them. Names of special tokens in a prompt are bytes, too.
std::vector<int64_t> byt5_ids(const std::string& text, int64_t max_tokens);

}  // namespace vmoba::model
