package org.mobileicsa.core

import java.nio.ByteBuffer

/** Facts of a model of two layers with two heads of two values and a context of eight. */
fun facts(prefixLength: Int = 0, chunk: Int = 4, context: Int = 8): ModelFacts = ModelFacts.from(
    Json.parseObject(
        """{"format": 1, "name": "tiny", "methods": {"prefill": "p", "decode": "d"}, "inputs": ["input_ids", "position"],
        "context": $context, "prefill_chunk": $chunk, "vocab_size": 5, "layers": 1, "kv_heads": 2, "head_dim": 2,
        "cache_dtype": "int8", "prefix_length": $prefixLength, "prefix_file": null, "bos_id": 1, "eos_ids": [4],
        "tokenizer": null}""",
    ),
)

/** Its new rows hold the tokens, its best logit is the token's successor; every call is kept. */
class FakeSession : Session {
    override val runtime = "fake 1"
    val calls = ArrayList<Triple<String, List<Long>, Long>>()
    var seen: List<List<Byte>> = emptyList()
    var closed = false

    override fun run(method: String, tokens: LongArray, position: Long, cache: List<ByteBuffer>): Output {
        calls.add(Triple(method, tokens.toList(), position))
        seen = cache.map { buffer -> List(buffer.capacity()) { buffer.get(it) } }
        val logits = FloatArray(tokens.size * 5)
        tokens.forEachIndexed { i, token -> logits[i * 5 + ((token + 1) % 5).toInt()] = 1f }
        val rows = List(2) { layer ->
            ByteBuffer.wrap(ByteArray(2 * tokens.size * 2) { (10 * layer + tokens[it / 2 % tokens.size]).toByte() })
        }
        return Output(logits, rows)
    }

    override fun close() {
        closed = true
    }
}
