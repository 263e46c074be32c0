package org.mobileicsa.core

import kotlin.random.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class TokenRunnerTest {
    private val session = FakeSession()

    @Test
    fun `a prompt is fed in chunks, the last one padded`() {
        val runner = TokenRunner(session, facts(), null)
        val logits = runner.prefill(intArrayOf(1, 2, 3, 1, 2))
        assertEquals(listOf(Triple("prefill", listOf(1L, 2L, 3L, 1L), 0L), Triple("prefill", listOf(2L, 0L, 0L, 0L), 4L)), session.calls)
        assertEquals(3, pick(logits, 0.0, Random(0)))
        assertEquals(5, runner.position)
    }

    @Test
    fun `rows of padding are not kept, those of tokens lie head by head at their position`() {
        val runner = TokenRunner(session, facts(), null)
        runner.prefill(intArrayOf(1, 2, 3, 1, 2))
        runner.decode(3)
        runner.decode(1)
        val head = listOf<Byte>(1, 1, 2, 2, 3, 3, 1, 1, 2, 2, 3, 3, 0, 0, 0, 0)
        assertEquals(head + head, session.seen[0])
        val values = head.take(12).map { (it + 10).toByte() } + List(4) { 0.toByte() }
        assertEquals(values + values, session.seen[1])
    }

    @Test
    fun `a prefix fills the first slots and survives a reset`() {
        val runner = TokenRunner(session, facts(prefixLength = 1), ByteArray(8) { (it + 1).toByte() })
        repeat(2) {
            runner.reset()
            runner.decode(2)
            assertEquals(1L, session.calls.last().third)
            assertEquals(listOf<Byte>(1, 2), session.seen[0].take(2))
            assertEquals(listOf<Byte>(3, 4), session.seen[0].drop(16).take(2))
            assertEquals(listOf<Byte>(5, 6), session.seen[1].take(2))
        }
    }

    @Test
    fun `what does not fit is refused`() {
        val runner = TokenRunner(session, facts(), null)
        assertThrows(IllegalArgumentException::class.java) { runner.prefill(IntArray(9)) }
        assertThrows(IllegalArgumentException::class.java) { runner.prefill(IntArray(0)) }
        runner.prefill(IntArray(8))
        assertThrows(IllegalArgumentException::class.java) { runner.decode(1) }
        assertThrows(IllegalArgumentException::class.java) { TokenRunner(session, facts(prefixLength = 1), ByteArray(7)) }
    }

    @Test
    fun `generation stops at the end token, the limit, a full context and when it is told to`() {
        fun produced(prompt: IntArray, limit: Int, stopAt: Int = 99): List<Int> {
            val found = ArrayList<Int>()
            generate(TokenRunner(session, facts(), null), prompt, limit, listOf(4), 0.0) {
                found.add(it)
                found.size < stopAt
            }
            return found
        }
        assertEquals(listOf(2, 3), produced(intArrayOf(1), 9))
        assertEquals(listOf(2), produced(intArrayOf(1), 1))
        assertEquals(listOf(1), produced(intArrayOf(0), 9, stopAt = 1))
        assertEquals(1, produced(IntArray(7), 9).count { it == 1 })
    }

    @Test
    fun `speeds are those of their own phases`() {
        val times = listOf(0L, 2_000_000_000L, 5_000_000_000L).iterator()
        val timing = generate(TokenRunner(session, facts(), null), intArrayOf(0, 1), 3, listOf(), 0.0, nanoTime = times::next) { true }
        assertEquals(1.0, timing.prefillTokensPerSecond, 1e-9)
        assertEquals(2.0 / 3, timing.decodeTokensPerSecond!!, 1e-9)
    }
}
