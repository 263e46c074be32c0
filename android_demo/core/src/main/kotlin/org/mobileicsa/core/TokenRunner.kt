package org.mobileicsa.core

import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Owns the static cache of one conversation: chunked prefill and one-token decode, as mobileicsa's Python runner. */
class TokenRunner(private val session: Session, private val facts: ModelFacts, private val prefixRows: ByteArray?) {
    private val rowBytes = facts.headDim * facts.cacheBytesPerValue
    private val cache: List<ByteBuffer> = List(2 * facts.layers) {
        ByteBuffer.allocateDirect(facts.kvHeads * facts.context * rowBytes).order(ByteOrder.nativeOrder())
    }

    /** Valid slots: where the next token goes. */
    var position = 0
        private set

    init {
        val expected = 2 * facts.layers * facts.kvHeads * facts.prefixLength * rowBytes
        require(prefixRows == null || prefixRows.size == expected) {
            "the prefix has ${prefixRows?.size} bytes, expected $expected"
        }
        require(facts.prefixLength < facts.context) { "the prefix fills the context" }
        reset()
    }

    /** Tokens that still fit. */
    val room: Int get() = facts.context - position

    /** Back to the prefix alone; later slots are masked, they need no clearing. */
    fun reset() {
        position = 0
        val length = facts.prefixLength
        if (prefixRows != null && length > 0) {
            val whole = ByteBuffer.wrap(prefixRows)
            val size = facts.kvHeads * length * rowBytes
            keep(List(cache.size) { whole.slicePart(it * size, size) }, length, length)
        }
        position = length
    }

    /** Feeds tokens, the last chunk padded; the logits behind the last one. */
    fun prefill(ids: IntArray): FloatArray {
        require(ids.isNotEmpty()) { "no tokens" }
        require(ids.size <= room) { "${ids.size} tokens do not fit the $room free slots" }
        val chunk = facts.prefillChunk
        var last = FloatArray(0)
        for (start in ids.indices step chunk) {
            val count = minOf(chunk, ids.size - start)
            val tokens = LongArray(chunk) { if (it < count) ids[start + it].toLong() else 0L }
            val output = session.run("prefill", tokens, position.toLong(), cache)
            keep(output.rows, chunk, count)
            position += count
            last = output.logits.copyOfRange((count - 1) * facts.vocabSize, count * facts.vocabSize)
        }
        return last
    }

    /** Feeds one token; the logits behind it. */
    fun decode(token: Int): FloatArray {
        require(room > 0) { "the context of ${facts.context} tokens is full" }
        val output = session.run("decode", longArrayOf(token.toLong()), position.toLong(), cache)
        keep(output.rows, 1, 1)
        position++
        return output.logits.copyOf(facts.vocabSize)
    }

    /** Writes the first [count] of [length] new rows of each head behind the valid slots. */
    private fun keep(rows: List<ByteBuffer>, length: Int, count: Int) {
        require(rows.size == cache.size) { "${rows.size} rows for ${cache.size} caches" }
        for ((whole, new) in cache.zip(rows)) {
            for (head in 0 until facts.kvHeads) {
                val target = whole.duplicate()
                target.position((head * facts.context + position) * rowBytes)
                target.put(new.slicePart(head * length * rowBytes, count * rowBytes))
            }
        }
    }
}

/** [size] bytes from [start], whatever the buffer's own position. */
private fun ByteBuffer.slicePart(start: Int, size: Int): ByteBuffer {
    val part = duplicate()
    part.limit(start + size)
    part.position(start)
    return part.slice()
}
