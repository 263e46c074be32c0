package org.mobileicsa.core

import kotlin.math.exp
import kotlin.random.Random
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class SamplingTest {
    @Test
    fun `greedy takes the first of the best`() {
        assertEquals(1, pick(floatArrayOf(0f, 3f, 3f, -1f), 0.0, Random(0)))
    }

    @Test
    fun `samples follow the softmax`() {
        val random = Random(7)
        val share = (1..20_000).count { pick(floatArrayOf(0f, 1f), 0.5, random) == 1 } / 20_000.0
        assertEquals(exp(2.0) / (1 + exp(2.0)), share, 0.01)
    }

    @Test
    fun `broken logits are refused`() {
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY)) {
            assertThrows(IllegalArgumentException::class.java) { pick(floatArrayOf(0f, bad), 0.0, Random(0)) }
        }
    }

    @Test
    fun `medians and percentiles`() {
        assertEquals(2.5, median(listOf(4.0, 1.0, 2.0, 3.0)), 0.0)
        assertEquals(90.0, percentile((1..100).map { it.toDouble() }, 90), 0.0)
        assertEquals(345678L * 1024, peakRssBytes("Name:\tx\nVmHWM:\t  345678 kB\nVmRSS:\t 1 kB\n"))
        assertEquals(0L, peakRssBytes("nothing"))
    }
}
