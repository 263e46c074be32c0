package org.mobileicsa.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class JsonTest {
    @Test
    fun `what is written is read again`() {
        val value = mapOf("a" to listOf(1L, 2.5, -3e-9, true, null), "b" to mapOf("q\"\\\n\u0007é😀" to "x"))
        assertEquals(value, Json.parse(Json.write(value)))
    }

    @Test
    fun `text of another writer is read`() {
        assertEquals(mapOf("a" to listOf(1e3, "é\t/")), Json.parse(" {\"a\" : [1e3, \"\\u00e9\\t\\/\"]}\n"))
    }

    @Test
    fun `broken text is refused`() {
        val deep = "[".repeat(100_000)
        for (bad in listOf("", "{", "[1,]", "{\"a\":1,}", "tru", "\"a", "\"\\x\"", "1 2", "01x", "{a:1}", "\"\\u12\"", deep)) {
            assertThrows(bad.take(20), IllegalArgumentException::class.java) { Json.parse(bad) }
        }
        assertThrows(IllegalArgumentException::class.java) { Json.write(Double.NaN) }
    }

    @Test
    fun `facts of another format or without a field are refused`() {
        val good = mapOf("format" to 2L)
        assertThrows(IllegalArgumentException::class.java) { ModelFacts.from(good) }
        assertThrows(IllegalArgumentException::class.java) { ModelFacts.from(mapOf("format" to 1L)) }
    }
}
