package org.mobileicsa.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class BenchmarkTest {
    private var nanos = 0L
    private val slept = ArrayList<Long>()
    private val machine = Machine({ nanos.also { nanos += 1_000_000 } }, { 1000 }, { slept.add(it) })
    private val session = FakeSession()

    private fun run(request: BenchmarkRequest): Map<String, Any?> =
        Benchmark(facts(context = 32), machine, null).run(request) { session }

    @Test
    fun `a run has what bench reads`() {
        val result = run(BenchmarkRequest("ab12", 6, 3, 50))
        assertEquals(1L, result["format"])
        assertEquals("ab12", result["run"])
        assertEquals(6, result["prompt_tokens"])
        assertEquals(3, (result["step_ms"] as List<*>).size)
        assertEquals(listOf(50L), slept)
        assertTrue(session.closed)
        val windows = result["windows_ns"] as Map<*, *>
        val ends = listOf("idle", "prefill", "decode").flatMap { windows[it] as List<*> }.map { it as Long }
        assertEquals(ends.sorted(), ends)
        assertEquals(result, result.toMap().also { Json.parse(Json.write(it)) })
    }

    @Test
    fun `the timed run feeds the host's tokens after a warm-up`() {
        run(BenchmarkRequest("a", 4, 2, 0))
        val prompt = (0 until 4).map { (7 * it + 3) % 5L }
        assertEquals(listOf(prompt, prompt), session.calls.filter { it.first == "prefill" }.map { it.second })
        assertEquals(listOf(4L, 5L, 4L, 5L), session.calls.filter { it.first == "decode" }.map { it.third })
    }

    @Test
    fun `requests are checked`() {
        for (bad in listOf("../x", "", "A", "a".repeat(33))) {
            assertThrows(IllegalArgumentException::class.java) { BenchmarkRequest(bad, 1, 1, 0) }
        }
        assertThrows(IllegalArgumentException::class.java) { BenchmarkRequest("a", 0, 1, 0) }
        assertThrows(IllegalArgumentException::class.java) { BenchmarkRequest("a", 1, 1, 999_999) }
    }

    @Test
    fun `a failure is a result too`() {
        val told = Json.parseObject(Json.write(Benchmark.failure("a", IllegalStateException("no\u0001 \"file\""))))
        assertEquals("IllegalStateException: no\u0001 \"file\"", told["error"])
    }
}
