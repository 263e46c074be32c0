package org.mobileicsa.core

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assume.assumeTrue
import org.junit.Test

class TokenizerTest {
    private fun tokenizer(pre: String = """{"type": "ByteLevel", "add_prefix_space": false}"""): Tokenizer = Tokenizer.from(
        Json.parseObject(
            """{"added_tokens": [{"id": 9, "content": "<end>"}], "pre_tokenizer": $pre, "model": {"type": "BPE",
            "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3, "Ġab": 4, "Ã": 5, "©": 6, "é": 7, "1": 8},
            "merges": ["a b", ["Ġ", "ab"]]}}""",
        ),
    )

    @Test
    fun `pairs join in the order of their ranks`() {
        assertArrayEquals(intArrayOf(3, 4, 4, 0), tokenizer().encode("ab ab aba"))
    }

    @Test
    fun `bytes outside the vocabulary's merges stay bytes`() {
        assertArrayEquals(intArrayOf(5, 6), tokenizer().encode("é"))
        assertEquals("é", tokenizer().decode(intArrayOf(5, 6)))
        assertEquals("\uFFFD", tokenizer().decode(intArrayOf(5)))
    }

    @Test
    fun `special tokens are found in text and left out of answers`() {
        assertArrayEquals(intArrayOf(3, 9, 3), tokenizer().encode("ab<end>ab"))
        assertEquals("abab", tokenizer().decode(intArrayOf(3, 9, 3)))
    }

    @Test
    fun `digits stand alone where the tokenizer says so`() {
        val digits = """{"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false}]}"""
        assertArrayEquals(intArrayOf(8, 8), tokenizer(digits).encode("11"))
    }

    @Test
    fun `other kinds of tokenizer are refused by name`() {
        val error = assertThrows(IllegalArgumentException::class.java) { tokenizer("""{"type": "Metaspace"}""") }
        assertEquals("tokenizer: pre-tokenizer Metaspace is not known", error.message)
    }

    /** With MOBILEICSA_TOKENIZER and MOBILEICSA_TOKENIZED (lines of {"text", "ids", "decoded"}) set, as `make check-android` does. */
    @Test
    fun `a real tokenizer gives the ids of the reference`() {
        val reference = System.getenv("MOBILEICSA_TOKENIZED")
        assumeTrue("no reference", reference != null)
        val tokenizer = Tokenizer.from(Json.parseObject(File(System.getenv("MOBILEICSA_TOKENIZER")).readText()))
        for (line in File(reference).readLines()) {
            val row = Json.parseObject(line)
            val text = row["text"] as String
            val ids = (row["ids"] as List<*>).map { (it as Long).toInt() }.toIntArray()
            assertArrayEquals(text, ids, tokenizer.encode(text))
            assertEquals(row["decoded"], tokenizer.decode(ids))
        }
    }
}
