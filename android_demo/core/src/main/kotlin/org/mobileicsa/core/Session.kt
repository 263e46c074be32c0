package org.mobileicsa.core

import java.nio.ByteBuffer

/** What one call gives: logits (tokens × vocabulary) and the new rows of every cache (kv_heads × tokens × head_dim). */
class Output(val logits: FloatArray, val rows: List<ByteBuffer>)

/** A loaded model. One thread at a time. */
interface Session : AutoCloseable {
    /** The runtime's name and version, for results. */
    val runtime: String

    /**
     * Runs `prefill` or `decode` on [tokens] behind [position] valid slots of [cache]: direct buffers in native byte
     * order, (kv_heads × context × head_dim) each, keys and values layer by layer. The output is valid until the next call.
     */
    fun run(method: String, tokens: LongArray, position: Long, cache: List<ByteBuffer>): Output
}

/** What the user may choose for models that offer it: hooks for adapters and early exits. */
data class Choices(val adapter: String? = null, val exitThreshold: Double? = null)
